"""One run: its inputs, its folder, its provenance, and the run while this process works on it.

Also what is done to a finished run (evaluating it again), and to a model before one (measuring its scale). Not here:
several runs (sweeps, analysis).
"""
