"""On a GPU: correctness, training, evaluation and memory, measured by one command, `python -m bench.gpu`."""
