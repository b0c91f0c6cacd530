"""Intervals and tests. Each says what it estimates, which design it assumes, its formula and its source.

docs/statistics.md has their coverage in simulations. Not here: what is compared (analysis, paper).
"""
