"""The paper's assumption and two theorems, measured on a finished run: `unlearn theory RUN_DIR`."""
