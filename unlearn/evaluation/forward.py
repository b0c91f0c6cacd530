"""Trees of tokens through a model, and logits at chosen nodes. R rows, L nodes, N chosen nodes, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from unlearn.evaluation.tree import Tree, chain, grow, mask
from unlearn.models.architectures import head_of, input_device
from unlearn.models.group import ModelGroup

Result = TypeVar("Result")


@torch.inference_mode()
def read_logits(
    group: ModelGroup,
    members: Sequence[int],
    trees: Sequence[Tree],
    nodes: Sequence[Sequence[int]],
    read: Callable[[Tensor], Result],
    *,
    masked: bool = False,
) -> list[Result]:
    """Each member's logits at `nodes` of `trees`, passed through `read`, row after row: float32 [N, V].

    The head runs at these nodes only. What a model does after it (scaling, soft-capping) is elementwise.

    Args:
        masked: use an attention mask even if no row needs one.
    """
    device, head = input_device(group.model), head_of(group.model)
    assert head is not None
    needs_mask = masked or not all(tree.is_chain for tree in trees)
    length = max(len(tree.ids) for tree in trees)
    if needs_mask and device.type != "cpu":
        length = -(-length // 8) * 8  # GPU kernels need that of a mask
    inputs: dict[str, Any] = {"input_ids": _padded([tree.ids for tree in trees], length).to(device)}
    if needs_mask:
        inputs["position_ids"] = _padded([tree.positions for tree in trees], length).to(device)
        inputs["attention_mask"] = mask(trees, length, group.model.dtype).to(device)
    rows = torch.tensor([row for row, chosen in enumerate(nodes) for _ in chosen], device=device)
    places = torch.tensor([node for chosen in nodes for node in chosen], device=device)

    def choose(_head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states_RLD, *others = args
        on = states_RLD.device  # in a model that is spread over several devices, not the inputs' device
        return (states_RLD[rows.to(on), places.to(on)][None], *others)

    hook = head.register_forward_pre_hook(choose)
    try:
        return [read(output.logits[0].float()) for output in group.outputs(members, **inputs, use_cache=False)]
    finally:
        hook.remove()


def takes_trees(model: PreTrainedModel) -> bool:
    """Whether this model, with its attention kernel, gives a tree's nodes the logits of the sequences alone.

    In half precision, logits differ by rounding as soon as another kernel or another shape of the batch computes them.
    So trees may differ from sequences alone by little more than masked rows of one batch do.
    """
    group = ModelGroup(model)
    shared = list(range(5, 13))
    sequences = [[*shared, 6, 9], [*shared, 6, 10, 11], [*shared, 12, 13], [*shared, 12, 14]]
    trees = [tree for pair in (sequences[:2], sequences[2:]) for tree, _ in grow(pair, 100)]
    chains = [chain(sequence) for sequence in sequences]

    def logits(trees: Sequence[Tree], *, masked: bool = False) -> Tensor:
        ends = [[path[-1] for path in tree.paths] for tree in trees]
        return read_logits(group, [0], trees, ends, lambda logits_NV: logits_NV, masked=masked)[0]

    try:
        together_NV, masked_NV = logits(trees), logits(chains, masked=True)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    alone_NV = torch.cat([logits([tree]) for tree in chains])
    error, rounding = (((other - alone_NV).norm() / alone_NV.norm()).item() for other in (together_NV, masked_NV))
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else min(0.1, max(2e-2, 2 * rounding))
    return error <= tolerance


def _padded(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
