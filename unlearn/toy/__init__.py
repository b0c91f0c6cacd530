"""The embedded world and model: everything that a first run needs, made from a seed by `unlearn toy`.

Invented facts, corpora and questions about them, lm-eval tasks, and a model that was trained on them.
Not here: anything that another model would need. No other room imports this one.
"""
