"""The paper's assumption and two theorems, measured on a finished run: `python -m unlearn.theory RUN_DIR`."""
