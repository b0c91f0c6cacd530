"""Relearning: fine-tuning on a few documents. What was hidden comes back sooner than what was never known."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from unlearn.attacks.attack import Change, Victim, check_levels, check_positive
from unlearn.data.batches import Padded, pad
from unlearn.data.corpora import UNKNOWN, Reading, corpus_sha256, load_texts, unknown_share
from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers

KEY = "attack.texts"
IGNORED = -100  # a label that is not counted


@dataclass(frozen=True)
class Relearning(Change):
    """AdamW in float32 on next-token prediction, over the first documents of each topic's corpus in turn.

    Args:
        levels: numbers of steps after which the model is asked, ascending.
        texts: "forget" or "retain", the corpora of the run, or the path of another corpus.
        documents: of each corpus.
        parameters: "span", the matrices that unlearning changed, "whole", all decoder layers, or "lora", adapters of
            `rank` on all linear layers but the head.
    """

    levels: Sequence[int]
    texts: str = "forget"
    documents: int = 8
    parameters: str = "span"
    rank: int = 16
    batch_size: int = 4
    lr: float = 1e-4
    level = "{:g} steps"
    beside_ignorant = True

    def __post_init__(self) -> None:
        check_levels(self.levels, "numbers of steps", lambda x: isinstance(x, int) and x > 0)
        if self.parameters not in ("span", "whole", "lora"):
            raise UserError(f"attack.parameters={self.parameters} is not allowed. Allowed: span, whole, lora.")
        check_positive(self, documents=int, rank=int, batch_size=int, lr=float)
        if not isinstance(self.texts, str):
            raise UserError(f"attack.texts={self.texts} is not allowed: it must be forget, retain or a path.")

    def uses(self, victim: Victim) -> dict[str, Any]:
        """The texts as they are, and which matrices are trained."""
        hashes = [corpus_sha256(path, KEY, self._reading(victim)) for path in self._paths(victim)]
        how: dict[str, Any] = {"seed": victim.seed} if self.parameters == "lora" else {}
        if any(p.element_size() < 4 for p in self._parameters(victim)):
            how["precision"] = "master"  # figures of updates in the model's own dtype are others
        return {"trained": list(victim.trained), "max_length": victim.max_length, "texts": hashes, **how}

    def why_not(self, victim: Victim) -> str | None:
        """Texts that the tokenizer does not know teach nothing."""
        known = unknown_share(self._rows(victim), victim.tokenizer) <= UNKNOWN
        return None if known else f"the model's tokenizer does not know the texts of {self.texts}"

    def stages(self, victim: Victim) -> Generator[float, None, None]:
        """Steps. Raises UserError for a corpus that cannot be read."""
        rows = self._rows(victim)
        with self._trained(victim) as trained:
            masters = [as_float32(p) for p in trained]
            copied = [pair for pair in zip(trained, masters, strict=True) if pair[0] is not pair[1]]
            optimizer = torch.optim.AdamW(masters, lr=self.lr, weight_decay=0.0)
            for step in range(max(self.levels)):
                taken = [rows[(step * self.batch_size + i) % len(rows)] for i in range(self.batch_size)]
                next_token_loss(victim.model, pad(taken, 0, "right").to(victim.model.device)).backward()
                step_masters(optimizer, copied)
                optimizer.zero_grad(set_to_none=True)
                if step + 1 in self.levels:
                    yield step + 1

    def _paths(self, victim: Victim) -> list[str]:
        if self.texts not in ("forget", "retain"):
            return [self.texts]
        return list(dict.fromkeys(part[self.texts] for part in victim.corpora.values()))

    def _reading(self, victim: Victim) -> Reading:
        """The run's own corpora are read as its configuration says."""
        return victim.reading if self.texts in ("forget", "retain") else Reading()

    def _rows(self, victim: Victim) -> list[list[int]]:
        """Token ids of the documents, topics in turn."""
        how: dict[str, Any] = {"documents": self.documents, "reading": self._reading(victim)}
        corpora = [
            load_texts(path, KEY, victim.tokenizer, max_length=victim.max_length, **how).rows
            for path in self._paths(victim)
        ]
        longest = max(map(len, corpora))
        return [rows[i] for i in range(longest) for rows in corpora if i < len(rows)]

    def _parameters(self, victim: Victim) -> list[nn.Parameter]:
        """The model's own parameters that are trained. Adapters, which peft makes in float32, are none of them."""
        if self.parameters == "lora":
            return []
        if self.parameters == "whole":
            return list(decoder_layers(victim.model).parameters())
        return [victim.model.get_parameter(name) for name in victim.trained]

    @contextmanager
    def _trained(self, victim: Victim) -> Iterator[list[nn.Parameter]]:
        """The parameters to train. Behind the block the model is as it was."""
        if self.parameters == "lora":
            with adapters(victim, self.rank) as trained:
                yield trained
            return
        trained = self._parameters(victim)
        originals = [p.data.to("cpu", copy=True) for p in trained]
        try:
            for parameter in trained:
                parameter.requires_grad_(True)
            yield trained
        finally:
            for parameter, original in zip(trained, originals, strict=True):
                parameter.requires_grad_(False).grad = None
                parameter.data.copy_(original)


@contextmanager
def adapters(victim: Victim, rank: int) -> Iterator[list[nn.Parameter]]:
    """Inside the block, the model has LoRA adapters, drawn from the seed. Only they require gradients."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(victim.seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = get_peft_model(victim.model, config)
    try:
        yield [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    finally:
        adapted.unload()


def as_float32(parameter: nn.Parameter) -> nn.Parameter:
    """A float32 copy of a parameter of a smaller dtype, where a step below half a unit in the last place is lost."""
    return parameter if parameter.element_size() >= 4 else nn.Parameter(parameter.detach().float())


def step_masters(optimizer: torch.optim.Optimizer, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Step the masters by their parameters' gradients, which are gone then, and copy them back."""
    for parameter, master in pairs:
        master.grad = None if parameter.grad is None else parameter.grad.float()
        parameter.grad = None
    optimizer.step()
    for parameter, master in pairs:
        parameter.data.copy_(master)


def next_token_loss(model: nn.Module, part: Padded) -> Tensor:
    """Mean negative log-likelihood of all real tokens but the first of each row, as the model itself computes it."""
    labels_BT = part.ids_BT.masked_fill(~part.mask_BT, IGNORED)
    return model(input_ids=part.ids_BT, attention_mask=part.mask_BT.long(), labels=labels_BT, use_cache=False).loss
