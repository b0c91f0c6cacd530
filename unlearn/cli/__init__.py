"""The one command, `unlearn`, its subcommands and their options, and the edge to Hydra for `launch.py`.

Here: command lines, hints for mistyped keys. Not here: any work. A command calls one function of another room.
Nothing heavy (torch, transformers, ...) may be imported before a command needs it.
"""
