"""Attacks on unlearned models: does what was forgotten come back, and does the rest break?

An attack is a class that changes a model in stages; `run.py` asks the model after each.
Not here: evaluation itself (`evaluate`), and training for unlearning (`training`).
"""
