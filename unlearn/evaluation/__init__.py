"""Evaluation: lm-eval tasks, perturbed queries, the scorer, MaxLogit, n-grams.

A new measure goes here. Not here: training, run folders, W&B, and figures of many runs (analysis).
"""
