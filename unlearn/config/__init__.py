"""The configuration: its typed schema, its checks, and a run's identity, which is a part of it.

To add a key, declare it in `schema.py`, give its value in conf/ and its conditions in `checks.py`. Not here: anything
heavy (torch, transformers, datasets, lm_eval, wandb), so that mistakes are reported within a second.
"""
