"""Directions that tell forget texts from retain texts, ablated: what an attacker can do who knows no control vector.

Representation misdirection pushes the states of forget texts aside, so at each layer the difference of the two means
points where they are pushed to. Arditi et al. (2024) find and ablate the direction of refusals so, Lucki et al. (2024)
those of RMU.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unlearn.attacks.attack import Change, Target, check_positive
from unlearn.attacks.lens import check_layers, chosen_layers
from unlearn.attacks.projection import removing
from unlearn.attacks.texts import rows_of, why_not_read, why_unknown
from unlearn.data.batches import pad
from unlearn.models.architectures import decoder_layers, hidden_of
from unlearn.storage.hashing import json_sha256

KEY = "attack.directions"
CORPORA = ("forget", "retain")


@dataclass(frozen=True)
class Directions(Change):
    """Behind each of `layers`, h - (h . d) d at every token, where d is that layer's difference of means, normalised.

    Args:
        layers: numbers from 0; None: all.
        documents: of each corpus whose states are averaged.
        skip: tokens at the beginning of a document that are not averaged. The first one has states of its own kind.
        max_length: tokens of a document; None: as many as the run's training texts have.
    """

    layers: Sequence[int] | None = None
    documents: int = 64
    skip: int = 1
    max_length: int | None = None
    levels = (1,)

    def __post_init__(self) -> None:
        check_layers(self.layers)
        check_positive(self, documents=int, skip=int)
        if self.max_length is not None:
            check_positive(self, max_length=int)

    def depends_on(self, target: Target) -> dict[str, Any]:
        """The texts' token ids."""
        return {corpus: json_sha256(self._rows(target, corpus)) for corpus in CORPORA}

    def obstacle(self, target: Target) -> str | None:
        """Texts that the model cannot read, or that are too short, have no states to average."""
        for corpus in CORPORA:
            if (why := why_unknown(target, corpus)) is not None:
                return why
            rows = self._rows(target, corpus)
            if (why := why_not_read(target, rows, corpus, KEY)) is not None:
                return why
            if max(map(len, rows)) <= self.skip:
                return f"no text of {corpus} has more than attack.skip={self.skip} tokens"
        return None

    def stages(self, target: Target) -> Generator[float, None, None]:
        """The model with a hook behind each chosen layer."""
        layers = list(chosen_layers(self.layers, target))
        means = [mean_states(target.model, self._rows(target, corpus), layers, self.skip) for corpus in CORPORA]
        directions_LD = torch.nn.functional.normalize(means[0] - means[1], dim=1).float()
        with ExitStack() as hooks:
            for number, d_D in zip(layers, directions_LD, strict=True):
                hook = decoder_layers(target.model)[number].register_forward_hook(removing(d_D[:, None]))
                hooks.callback(hook.remove)
            yield 1

    def _rows(self, target: Target, corpus: str) -> list[list[int]]:
        return rows_of(target, corpus, KEY, self.documents, self.max_length)


@torch.no_grad()
def mean_states(
    model: PreTrainedModel, rows: Collection[list[int]], layers: Sequence[int], skip: int, batch_size: int = 8
) -> Tensor:
    """Means of the states behind these layers over all tokens but the first `skip` of each row: float64 [layers, D]."""
    long = sorted((row for row in rows if len(row) > skip), key=len)
    sums: dict[int, Tensor] = {}
    for start in range(0, len(long), batch_size):
        part = pad(long[start : start + batch_size], 0, "right").to(model.device)
        counted_BT = part.mask_BT.clone()
        counted_BT[:, :skip] = False

        def add(number: int, output: Any, counted_BT: Tensor = counted_BT) -> None:
            sums[number] = sums.get(number, 0) + hidden_of(output)[counted_BT].double().sum(0)

        with ExitStack() as hooks:
            for number in layers:
                layer = decoder_layers(model)[number]
                hook = layer.register_forward_hook(lambda _m, _a, output, number=number: add(number, output))
                hooks.callback(hook.remove)
            model(input_ids=part.ids_BT, attention_mask=part.mask_BT.long(), use_cache=False)
    return torch.stack([sums[number] for number in layers]) / sum(len(row) - skip for row in long)
