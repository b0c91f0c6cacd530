"""A language model: loading it up to layer l, cutting it, its deltas, its export, its fingerprint, its memory.

A new model family goes into `architectures.py`. Not here: methods, configuration objects, run folders, W&B.
"""
