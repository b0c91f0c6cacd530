"""Unlearning of language models by representation misdirection or on likelihoods, with Random Noise Augmentation.

`experiment.py` is the whole run on one page. The rooms, from top to bottom: cli, paper, analysis, attacks, sweeps,
(experiment), runs, tracking, evaluate, training, methods and models, data, config, storage. A room imports only from
rooms below it; `lint-imports` checks that (pyproject.toml). Beside them stand toy, the embedded model and its world,
and real, texts for real models.
"""

import os

# Before torch is imported: idle OpenMP threads sleep. By default they spin, and two processes of two threads on two
# cores slow each other down to a third (docs/log/speed.md). A process that is alone loses some hundredths by it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
