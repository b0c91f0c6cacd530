"""Representation-misdirection unlearning of language models, made robust with Random Noise Augmentation."""
