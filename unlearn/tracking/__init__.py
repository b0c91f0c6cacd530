"""Where a run's figures are shown while it works: train.jsonl, the terminal, and Weights & Biases.

Not here: run folders, training, evaluation. It is given numbers and sends them on.
"""
