"""Requests for log-likelihoods as rows for the model: trees of tokens, in batches of similar length."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from unlearn.evaluation.journal import fingerprint
from unlearn.evaluation.tree import Tree, chain, grow

LARGEST_TREE = 2048  # tokens; attention over larger trees would cost more than sharing saves

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # strings, and tokens of context and continuation


@dataclass(frozen=True)
class Row:
    """A tree of token ids; of each request that it answers, its number, its scored nodes, and their targets."""

    tree: Tree
    requests: list[int]
    nodes: list[list[int]]
    targets: list[list[int]]  # the token that should come after each node
    keeps_choices: list[bool]  # whether the model's own first choices there are kept


def make_rows(
    requests: Sequence[Request], context: int, largest: int, keep_choices: Collection[tuple[str, str]] = ()
) -> list[Row]:
    """All requests as rows, the longest first, so that memory runs out at the start if at all.

    As in HFLM, a continuation's last token is not an input, and a sequence that is longer than the context is cut on
    the left.

    Args:
        context: tokens that the model reads at most.
        largest: tokens of a tree; 0: each sequence is a row of its own.
        keep_choices: the requests, by their strings, of which the model's first choices are kept.
    """
    requests_of: dict[tuple[int, ...], list[int]] = {}
    for number, (_, beginning, continuation) in enumerate(requests):
        inputs = (beginning + continuation)[-(context + 1) :][:-1]
        requests_of.setdefault(tuple(inputs), []).append(number)
    sequences = [list(tokens) for tokens in requests_of]
    asked = list(requests_of.values())
    trees = grow(sequences, largest) if largest else [(chain(s), [i]) for i, s in enumerate(sequences)]
    rows = []
    for tree, members in trees:
        row = Row(tree, [], [], [], [])
        for member, path in zip(members, tree.paths, strict=True):
            for number in asked[member]:
                targets = requests[number][2][-context:]
                row.requests.append(number)
                row.nodes.append(path[len(path) - len(targets) :])
                row.targets.append(targets)
                row.keeps_choices.append(requests[number][0] in keep_choices)
        rows.append(row)
    return sorted(rows, key=lambda row: -len(row.tree.ids))


def by_length(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Batches of rows, by their numbers, the longest first: at most `tokens_per_batch` tokens with padding.

    A single longer row is a batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches = []
    while order:
        size = max(1, tokens_per_batch // lengths[order[0]])
        batches.append(order[:size])
        order = order[size:]
    return batches


def plan_of(batches: Sequence[Sequence[Row]]) -> str:
    """The fingerprint of all that determines the answers: every batch's trees, requests, scored nodes and targets."""
    rows = [row for batch in batches for row in batch]
    numbers = [part for row in rows for part in (row.tree.ids, row.requests, *row.nodes, *row.targets)]
    return fingerprint(numbers, [len(batch) for batch in batches])
