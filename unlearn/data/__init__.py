"""From corpora to batches of token ids: reading, tokenising, padding, packing short rows.

A new corpus format goes into `formats.py`. Not here: models, losses, and anything of evaluation.
"""
