"""Showing a run's progress and results: train.jsonl, the terminal, and Weights & Biases.

It receives numbers and displays or sends them. Not here: run folders, training, evaluation.
"""
