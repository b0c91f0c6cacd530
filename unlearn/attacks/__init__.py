"""Attacks on unlearned models: does what was forgotten come back?

An attack is a class that changes a model, or reads its states, at several levels; `run.py` measures the model at each.
Not here: evaluation itself (`evaluation`), and training for unlearning (`training`).
"""

import logging

# It warns of kernels that nothing here uses, and at each product of a float32 model.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
