"""A report on any set of runs: one self-contained page, the paper's figures and tables, and the data behind them."""
