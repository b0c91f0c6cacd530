"""Many runs: the jobs of a sweep, which of them share a process, SLURM, their status, Hydra's launchers, a search.

A new launcher goes into `launchers.py`. Not here: what a single run does (experiment, runs).
"""
