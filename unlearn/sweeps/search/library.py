"""Optuna, which only a search needs."""

from __future__ import annotations

from types import ModuleType

from unlearn.errors import UserError


def optuna() -> ModuleType:
    """The library. Raises UserError with the command that installs it."""
    try:
        import optuna as library
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError("A search needs the package optuna: `pip install 'unlearn-rna[search]'`") from None
    library.logging.set_verbosity(library.logging.WARNING)
    return library
