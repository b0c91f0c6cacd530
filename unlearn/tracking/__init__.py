"""Showing a run's progress and results: train.jsonl, the terminal, and Weights & Biases.

It is given numbers and sends them on. Not here: run folders, training, evaluation.
"""
