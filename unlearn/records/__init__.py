"""Results as rows: the score of a model on a task, and its answer to a single question or text.

Here: the records, their Parquet files, means over roles, and the names of queries and roles.
Not here: computing them (evaluation), or finding runs and drawing figures (analysis).
"""
