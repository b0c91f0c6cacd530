"""The embedded world and model: corpora, questions, lm-eval tasks and weights, everything that a first run needs.

`python -m embedded_world` makes them from a seed. Not here: that code, and anything that another model would need. No
other room imports this one.
"""
