"""A method of your own, in a file of your own.

By the API: `python examples/own_method.py`. By the command line, in the folder of this file:

    unlearn run method=rmu method._target_=own_method.Opposite method.c=0.5

The run is called opposite, and takes layer, learning rate, alpha and nu from the settings of rmu, unless they are set.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from torch import Generator, Tensor

from unlearn import CutModel, MisdirectionMethod, UserError, train
from unlearn.methods.inputs import ForgetBatch


@dataclass(frozen=True)
class Opposite(MisdirectionMethod):
    """Push forget representations to the opposite of what they are, times c: y^f = -c h_frozen(x^f)."""

    c: float

    def __post_init__(self) -> None:
        """Refuse what makes no sense, in a sentence."""
        if not self.c > 0:
            raise UserError(f"c={self.c} is not allowed: it must be a number > 0.")

    def control_vector(self, dim: int, generator: Generator) -> Tensor:
        """A random direction of the topic, float32 [D]. This method does not use it."""
        u_D = torch.randn(dim, generator=generator)
        return u_D / u_D.norm()

    def target(self, batch: ForgetBatch) -> Tensor:
        """The target of each forget representation: [B, T, D]."""
        return -self.c * batch.frozen()


def main(steps: int = 20) -> None:
    """Train it on the embedded model, and print the first and the last losses."""
    toy = Path(str(files("unlearn"))) / "toy"
    topics = {"bio": (toy / "data" / "forget-bio.jsonl", toy / "data" / "retain.jsonl")}
    [variant] = train(CutModel.load(toy / "model", layer=3), Opposite(c=0.5), topics, steps=steps, lr=2e-4, alpha=10)
    for record in (variant.records[0], variant.records[-1]):
        print(f"step {record.step}: forget loss {record.forget_loss:.3f}, retain loss {record.retain_loss:.5f}")


if __name__ == "__main__":
    main()
