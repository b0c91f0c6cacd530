"""`python -m unlearn`: the same as the command `unlearn`."""

from unlearn.cli.main import main

main()
