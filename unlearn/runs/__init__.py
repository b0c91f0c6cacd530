"""One run: its inputs, its folder, its provenance, and the run while this process works on it.

Also what is done to a finished run: evaluating it again. Not here: several runs (sweeps, analysis).
"""
