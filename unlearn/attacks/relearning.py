"""Relearning: fine-tuning on a few documents. What was hidden comes back sooner than what was never known."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from unlearn.attacks.attack import Change, Target, check_levels, check_positive
from unlearn.attacks.matrices import expert_tensors, linear_modules, restored, share_of
from unlearn.data.batches import Padded, pad
from unlearn.data.corpora import UNKNOWN, Reading, check_rows, load_texts, unknown_share
from unlearn.errors import UserError
from unlearn.models.architectures import decoder_layers
from unlearn.records.names import text_role
from unlearn.storage.hashing import json_sha256

KEY = "attack.texts"
RUNS_CORPORA = ("forget", "retain")  # values of `texts` that name the run's own corpora
IGNORED = -100  # a label that is not counted
MAMBAS = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")  # model types, of which peft
REFUSED = (".out_proj", ".conv1d")  # takes no modules of these names


@dataclass(frozen=True)
class Relearning(Change):
    """AdamW in float32 on next-token prediction, over the first documents of each topic's corpus in turn.

    Args:
        levels: numbers of steps after which the model is evaluated.
        texts: "forget" or "retain", the corpora of the run, or the path of another corpus.
        documents: of each corpus.
        parameters: "span", the matrices that unlearning changed, "whole", all decoder layers, or "lora", adapters of
            `rank` on the decoder layers' linear modules and experts.
        bound: points or nats of retained knowledge that a learning rate may cost and still be chosen; None: any.
    """

    levels: Sequence[int]
    texts: str = "forget"
    documents: int = 8
    parameters: str = "span"
    rank: int = 16
    batch_size: int = 4
    lr: float = 1e-4
    bound: float | None = None
    level = "{:g} steps"

    def __post_init__(self) -> None:
        check_levels(self.levels, "numbers of steps", lambda x: isinstance(x, int) and x > 0)
        if self.parameters not in ("span", "whole", "lora"):
            raise UserError(f"attack.parameters={self.parameters} is not allowed. Allowed: span, whole, lora.")
        check_positive(self, documents=int, rank=int, batch_size=int, lr=float)
        if self.bound is not None:
            check_positive(self, bound=float)
        if not isinstance(self.texts, str):
            raise UserError(f"attack.texts={self.texts} is not allowed: it must be forget, retain or a path.")

    def levels_of(self, target: Target) -> Sequence[int]:
        """The numbers of steps, ascending."""
        return sorted(set(self.levels))

    def depends_on(self, target: Target) -> dict[str, Any]:
        """The texts' token ids, which matrices are trained, and from which seed adapters are drawn."""
        unlearning = target.unlearning
        values = {"trained": list(unlearning.trained), "texts": json_sha256(self._rows(target))}
        return {**values, "seed": unlearning.seed} if self.parameters == "lora" else values

    def obstacle(self, target: Target) -> str | None:
        """Texts that the tokenizer does not know teach nothing, and the model may not know the tokenizer's ids.

        A bound on retained knowledge needs some that is measured.
        """
        if self.bound is not None and not {"retain", text_role("retain")} & set(target.suite.members):
            return f"attack.bound={self.bound:g} needs retained knowledge in the evaluation (eval.tasks, eval.texts)"
        rows = self._rows(target)
        try:
            embeddings = len(target.model.get_input_embeddings().weight)
            check_rows({f"{KEY}={self.texts}": rows}, embeddings, first_counted=False)
        except UserError as error:
            return str(error).rstrip(".")
        if unknown_share(rows, target.tokenizer) <= UNKNOWN:
            return None
        return f"the model's tokenizer does not know the texts of {self.texts}"

    def remark(self, target: Target) -> str | None:
        """The share that adapters reach, where it is not all but for routers and the like."""
        if self.parameters != "lora":
            return None
        linear = [f"{name}.weight" for name in adapted_modules(target.model)]
        share = share_of(target.model, [*expert_tensors(target.model), *linear])
        return None if share > 0.99 else f"LoRA adapts {share:.0%} of the decoder layers' weights"

    def stages(self, target: Target) -> Generator[float, None, None]:
        """The model after each number of steps. Raises UserError for a corpus that cannot be read."""
        rows, levels = self._rows(target), self.levels_of(target)
        with self._trainable(target) as parameters:
            masters = [as_float32(p) for p in parameters]
            copied = [pair for pair in zip(parameters, masters, strict=True) if pair[0] is not pair[1]]
            optimizer = torch.optim.AdamW(masters, lr=self.lr, weight_decay=0.0)
            for step in tqdm(range(levels[-1]), desc=f"Relearning, {target.label} model", mininterval=1, disable=None):
                batch = [rows[(step * self.batch_size + i) % len(rows)] for i in range(self.batch_size)]
                if any(len(row) > 1 for row in batch):  # otherwise no token is counted
                    next_token_loss(target.model, pad(batch, 0, "right").to(target.model.device)).backward()
                    step_masters(optimizer, copied)
                    optimizer.zero_grad(set_to_none=True)
                if step + 1 in levels:
                    yield step + 1

    def _paths(self, target: Target) -> list[str]:
        if self.texts not in RUNS_CORPORA:
            return [self.texts]
        return list(dict.fromkeys(corpora[self.texts] for corpora in target.unlearning.corpora.values()))

    def _reading(self, target: Target) -> Reading:
        """The run's own corpora are read as its configuration says."""
        return target.unlearning.reading if self.texts in RUNS_CORPORA else Reading()

    def _rows(self, target: Target) -> list[list[int]]:
        """Token ids of the documents, topics in turn."""
        corpora = [
            load_texts(
                path,
                KEY,
                target.tokenizer,
                max_length=target.unlearning.max_length,
                documents=self.documents,
                reading=self._reading(target),
            ).rows
            for path in self._paths(target)
        ]
        longest = max(map(len, corpora))
        return [rows[i] for i in range(longest) for rows in corpora if i < len(rows)]

    @contextmanager
    def _trainable(self, target: Target) -> Iterator[list[nn.Parameter]]:
        """The parameters to train, which require gradients. Behind the block the model is as it was."""
        if self.parameters == "lora":
            with adapters(target.model, self.rank, target.unlearning.seed) as parameters:
                yield parameters
            return
        parameters = self._parameters(target)
        with restored(parameters):
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield parameters

    def _parameters(self, target: Target) -> list[nn.Parameter]:
        """The model's own parameters that are trained."""
        if self.parameters == "whole":
            return list(decoder_layers(target.model).parameters())
        return [target.model.get_parameter(name) for name in target.unlearning.trained]


def adapted_modules(model: PreTrainedModel) -> list[str]:
    """Full names of the linear modules that get adapters: all that peft takes."""
    is_mamba = model.config.model_type in MAMBAS
    return [name for name in linear_modules(model) if not (is_mamba and name.endswith(REFUSED))]


@contextmanager
def adapters(model: PreTrainedModel, rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """Inside the block, the model has LoRA adapters, drawn from the seed. Only they require gradients."""
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=adapted_modules(model),
        target_parameters=expert_tensors(model) or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    try:
        yield [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    finally:
        adapted.unload()


def as_float32(parameter: nn.Parameter) -> nn.Parameter:
    """A float32 copy of a parameter of a smaller dtype, where a step below half a unit in the last place is lost."""
    return parameter if parameter.element_size() >= 4 else nn.Parameter(parameter.detach().float())


def step_masters(optimizer: torch.optim.Optimizer, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Step the masters by their parameters' gradients, which are freed, and copy them back."""
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
