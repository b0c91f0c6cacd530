"""Making the embedded world and model of `unlearn/toy` from a seed: `python -m embedded_world`."""
