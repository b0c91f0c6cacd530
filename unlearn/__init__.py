"""Unlearning of language models by representation misdirection or on likelihoods, with Random Noise Augmentation.

`experiment.py` is the whole run on one page. The rooms, from top to bottom: cli, paper, analysis, sweeps, experiment,
attacks, runs, tracking, evaluate, training, methods, models, data, config, records, toy, real, storage, screen, errors.
A room imports only from rooms below it: `lint-imports` checks that (pyproject.toml).
"""

import os

__version__ = "0.1.0"

# Before torch is imported: idle OpenMP threads sleep. By default they spin, and two processes of two threads on two
# cores slow each other down to a third (docs/log/speed.md). A process that is alone loses some hundredths by it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
