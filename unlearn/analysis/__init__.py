"""Results of finished runs: the report on any set of them, and the comparison of two.

A new figure or table goes into `report/`. Reads run folders only. Not here: the paper's claims and theorems (paper),
training, and anything that changes a run.
"""
