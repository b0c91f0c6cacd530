"""What models are asked, and how well they answer: lm-eval tasks, perturbed queries, MaxLogit, n-grams, statistics.

A new measure goes here. Not here: training, run folders, W&B, and figures of many runs (analysis).
"""
