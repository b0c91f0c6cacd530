"""The paper's claims, each measured on a set of runs and given a verdict: `unlearn claims RUNS...`."""
