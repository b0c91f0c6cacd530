"""The configuration: its typed schema, its checks, and a run's identity, which is a part of it.

A new key is declared in `schema.py`, its value stands in conf/, what is allowed in `checks.py`. Not here: anything
heavy (torch, transformers, datasets, lm_eval, wandb). A mistake is reported within a second.
"""
