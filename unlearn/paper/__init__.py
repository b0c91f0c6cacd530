"""The paper that this project follows: its claims with verdicts, its theorems measured, its published numbers.

Uses what any user can: runs' results, the report's frames, models. Only the command line imports it. Not here: figures
and tables that are useful for other questions than the paper's (analysis).
"""
