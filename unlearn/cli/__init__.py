"""The one command, `unlearn`, its subcommands and their options, and the edge to Hydra for `launch.py`.

A command parses its arguments and calls one function of another room. Not here: any work. Nothing heavy (torch,
transformers, ...) may be imported before a command needs it.
"""
