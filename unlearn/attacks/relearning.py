"""Relearning: fine-tuning on a few documents. What was hidden comes back sooner than what was never known."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from unlearn.arguments import is_number
from unlearn.attacks.attack import Change, Target, check_levels, check_positive
from unlearn.attacks.matrices import expert_tensors, linear_modules, restored, share_of
from unlearn.attacks.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    Masters,
    lacks,
    make_optimizer,
    make_schedule,
    warmup_steps,
)
from unlearn.attacks.texts import rows_of, why_not_read, why_unknown
from unlearn.data.batches import Padded, pad
from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers
from unlearn.records.names import text_role
from unlearn.storage.hashing import json_sha256

KEY = "attack.texts"
CHOICES: dict[str, Collection[str]] = {
    "unit": ("steps", "epochs"),
    "parameters": ("span", "whole", "all", "lora"),
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}
OPTIONAL: dict[str, type[int] | type[float]] = {"max_length": int, "lora_alpha": float, "bound": float}
IGNORED = -100  # a label that is not counted
MAMBAS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")  # model types, of which peft
REFUSED = (".out_proj", ".conv1d")  # takes no modules of these names


@dataclass(frozen=True)
class Relearning(Change):
    """Next-token prediction in float32, over the first documents of each topic's corpus in turn.

    Args:
        levels: numbers of steps after which the model is evaluated, or of epochs; the largest is the schedule's length.
        unit: "steps" or "epochs".
        texts: "forget" or "retain", the corpora of the run, or the path of another corpus.
        documents: of each corpus.
        max_length: tokens of a document; None: as many as the run's training texts have.
        parameters: "span", the matrices that unlearning changed, "whole", all decoder layers, "all", the embeddings and
            the head, too, or "lora", adapters of `rank` on the decoder layers' linear modules and experts.
        lora_alpha: the adapters' weight is lora_alpha / rank; None: twice the rank.
        modules: the names of the linear modules that get adapters, such as "q_proj"; None: all, and experts.
        batch_size: documents of a batch.
        accumulation: batches of a step.
        optimizer, schedule: see `unlearn.attacks.optimizers`. Momentum of "sgd" and "nesterov" is 0.9.
        warmup: steps in which the learning rate rises to `lr`; below 1: their share of all.
        bound: points or nats of retained knowledge that the strongest of several settings may cost; None: any.
    """

    levels: Sequence[int]
    unit: str = "steps"
    texts: str = "forget"
    documents: int = 8
    max_length: int | None = None
    parameters: str = "span"
    rank: int = 16
    lora_alpha: float | None = None
    modules: Sequence[str] | None = None
    batch_size: int = 4
    accumulation: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: float = 0.0
    bound: float | None = None

    def __post_init__(self) -> None:
        check_levels(self.levels, f"numbers of {self.unit}", lambda x: isinstance(x, int) and x > 0)
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise UserError(f"attack.{key}={getattr(self, key)} is not allowed. Allowed: {', '.join(allowed)}.")
        check_positive(self, documents=int, rank=int, batch_size=int, accumulation=int, lr=float)
        check_positive(self, **{key: kind for key, kind in OPTIONAL.items() if getattr(self, key) is not None})
        for key in ("weight_decay", "warmup"):
            if not is_number(getattr(self, key)) or getattr(self, key) < 0:
                raise UserError(f"attack.{key}={getattr(self, key)} is not allowed: it must be a number of at least 0.")
        if self.modules is not None and (self.parameters != "lora" or not isinstance(self.modules, list)):
            raise UserError(
                f"attack.modules={self.modules} is not allowed: it must be a list of names, and parameters=lora."
            )
        if not isinstance(self.texts, str):
            raise UserError(f"attack.texts={self.texts} is not allowed: it must be forget, retain or a path.")

    def levels_of(self, target: Target) -> Sequence[int]:
        """The numbers of steps or epochs, ascending."""
        return sorted(set(self.levels))

    def level_name(self, level: float) -> str:
        """A level in words."""
        return f"{level:g} {self.unit}"

    def depends_on(self, target: Target) -> dict[str, Any]:
        """The texts' token ids, which matrices are trained, and from which seed adapters are drawn."""
        unlearning = target.unlearning
        values = {"trained": list(unlearning.trained), "texts": json_sha256(self._rows(target))}
        return {**values, "seed": unlearning.seed} if self.parameters == "lora" else values

    def obstacle(self, target: Target) -> str | None:
        """Texts that the model cannot read teach nothing.

        A bound on retained knowledge needs some that is measured, an optimizer its package.
        """
        if (package := lacks(self.optimizer)) is not None:
            return package
        if self.modules is not None and not adapted_modules(target.model, self.modules):
            return f"attack.modules={list(self.modules)}: no linear module of the decoder layers has such a name"
        if self.bound is not None and not {"retain", text_role("retain")} & set(target.suite.members):
            return f"attack.bound={self.bound:g} needs retained knowledge in the evaluation (eval.tasks, eval.texts)"
        if (why := why_unknown(target, self.texts)) is not None:
            return f"{why}. attack.texts=FILE names some"
        rows = self._rows(target)
        steps = self._steps(max(self.levels), rows)
        if warmup_steps(self.warmup, steps) >= steps:
            return f"attack.warmup={self.warmup:g} has to be less than all {steps} steps"
        return why_not_read(target, rows, self.texts, KEY)

    def remark(self, target: Target) -> str | None:
        """The share that adapters reach, where it is not all but for routers and the like."""
        if self.parameters != "lora":
            return None
        linear = [f"{name}.weight" for name in adapted_modules(target.model, self.modules)]
        experts = expert_tensors(target.model) if self.modules is None else []
        share = share_of(target.model, [*experts, *linear])
        return None if share > 0.99 else f"LoRA adapts {share:.0%} of the decoder layers' weights"

    def stages(self, target: Target) -> Generator[float, None, None]:
        """The model after each number of steps. Raises UserError for a corpus that cannot be read."""
        rows = self._rows(target)
        after = {level: self._steps(level, rows) for level in self.levels_of(target)}
        last = max(after.values())
        with self._trainable(target) as parameters:
            masters = Masters(parameters)
            optimizer = make_optimizer(self.optimizer, masters.weights, self.lr, self.weight_decay)
            schedule = make_schedule(self.schedule, optimizer, self.warmup, last)
            for step in tqdm(range(last), desc=f"Relearning, {target.label} model", mininterval=1, disable=None):
                if self._add_gradients(target, rows, step):
                    masters.step(optimizer)
                schedule.step()
                for level in (level for level, steps in after.items() if steps == step + 1):
                    with masters.evaluated(optimizer):
                        yield level

    def _steps(self, level: int, rows: Sequence[list[int]]) -> int:
        return level if self.unit == "steps" else ceil(level * len(rows) / (self.batch_size * self.accumulation))

    def _add_gradients(self, target: Target, rows: Sequence[list[int]], step: int) -> bool:
        """Of a step's mean loss over its batches. Returns whether there is one: documents of one token have none."""
        some = False
        for number in range(step * self.accumulation, (step + 1) * self.accumulation):
            batch = [rows[(number * self.batch_size + i) % len(rows)] for i in range(self.batch_size)]
            if any(len(row) > 1 for row in batch):
                part = pad(batch, 0, "right").to(target.model.device)
                (next_token_loss(target.model, part) / self.accumulation).backward()
                some = True
        return some

    def _rows(self, target: Target) -> list[list[int]]:
        return rows_of(target, self.texts, KEY, self.documents, self.max_length)

    @contextmanager
    def _trainable(self, target: Target) -> Iterator[list[nn.Parameter]]:
        """The parameters to train, which require gradients. Behind the block the model is as it was."""
        if self.parameters == "lora":
            seed = target.unlearning.seed
            with adapters(target.model, self.rank, seed, alpha=self.lora_alpha, modules=self.modules) as parameters:
                yield parameters
            return
        parameters = self._parameters(target)
        with restored(parameters):
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield parameters

    def _parameters(self, target: Target) -> list[nn.Parameter]:
        """The model's own parameters that are trained."""
        if self.parameters == "all":
            return list(target.model.parameters())
        if self.parameters == "whole":
            return list(decoder_layers(target.model).parameters())
        return [target.model.get_parameter(name) for name in target.unlearning.trained]


def adapted_modules(model: PreTrainedModel, modules: Sequence[str] | None = None) -> list[str]:
    """Full names of the linear modules that get adapters: all that peft takes, or those whose last name is given."""
    is_mamba = model.config.model_type in MAMBAS
    names = [name for name in linear_modules(model) if not (is_mamba and name.endswith(REFUSED))]
    return names if modules is None else [name for name in names if name.rpartition(".")[2] in modules]


@contextmanager
def adapters(
    model: PreTrainedModel, rank: int, seed: int, *, alpha: float | None = None, modules: Sequence[str] | None = None
) -> Iterator[list[nn.Parameter]]:
    """Inside the block, the model has LoRA adapters, drawn from the seed. Only they require gradients."""
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        target_modules=adapted_modules(model, modules),
        target_parameters=(expert_tensors(model) or None) if modules is None else None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    try:
        yield [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    finally:
        adapted.unload()


def next_token_loss(model: nn.Module, part: Padded) -> Tensor:
    """Mean negative log-likelihood of all real tokens but the first of each row, as the model itself computes it."""
    labels_BT = part.ids_BT.masked_fill(~part.mask_BT, IGNORED)
    return model(input_ids=part.ids_BT, attention_mask=part.mask_BT.long(), labels=labels_BT, use_cache=False).loss
