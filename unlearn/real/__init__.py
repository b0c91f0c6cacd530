"""Real texts for real language models: corpora with their licences (data/README.md), and the script that made them.

`data=real` trains on them, `eval=real` measures the held-out ones.
Not here: code that reads corpora (data) or measures texts (evaluation). No other room imports this one.
"""
