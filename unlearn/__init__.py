"""Unlearning of language models by representation misdirection, made robust with Random Noise Augmentation.

`experiment.py` is the whole run on one page. The rooms, from those that know everything to those that know nothing:
cli, analysis, sweeps, experiment, runs, tracking, evaluate, training, methods, models, data, config, storage. A room
imports only from rooms that are listed after it; `lint-imports` checks that.
"""
