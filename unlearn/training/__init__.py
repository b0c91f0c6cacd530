"""The training loop of Algorithm 1, variants and their optimizers, checkpoints, and what training costs.

Not here: what is minimised (methods), configuration objects, run folders, W&B.
"""
