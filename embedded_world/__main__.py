"""`python -m embedded_world`: rebuild the embedded world and model. It takes about 15 minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embedded_world.build import build


def main(
    out: Annotated[Path | None, typer.Option(help="The folder to write to.", show_default="unlearn/toy")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the world and of the training.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Number of training steps.")] = 2000,
    ignorant: Annotated[
        bool, typer.Option("--ignorant", help="Train a model that never sees the knowledge to be forgotten.")
    ] = False,
) -> None:
    """Rebuild the embedded world and model. The result depends only on the seed."""
    if ignorant and out is None:
        raise typer.BadParameter("--ignorant needs --out: it must not replace the package's own model.")
    build(out, seed, steps, ignorant=ignorant)


if __name__ == "__main__":
    typer.run(main)
