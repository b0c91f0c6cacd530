"""The embedded world and model: everything a first run needs, made from a seed by `python -m unlearn.toy`."""
