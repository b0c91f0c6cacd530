"""Results of finished runs: comparing two, the report, the paper's claims, the theorems.

A new figure goes into `report/`. Reads run folders only. Not here: training, and anything that changes a run.
"""
