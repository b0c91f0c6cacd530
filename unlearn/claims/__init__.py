"""The paper's claims, each measured on a set of runs and given a verdict: `python -m unlearn.claims RUNS...`."""
