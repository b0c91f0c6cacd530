"""Token sequences with common beginnings as trees, so that what they share is computed once.

A question and the same question with another option share their tokens up to that option; all questions of a task
share their few-shot examples. A tree is one row of a batch: every node is a token, which attends to its ancestors.
R rows of L nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor


@dataclass
class Tree:
    """Nodes in the order in which they were added: a node's ancestors stand before it."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)  # depth of each node
    paths: list[list[int]] = field(default_factory=list)  # nodes of each sequence, from the root
    branches: list[tuple[int, int, list[int]]] = field(default_factory=list)  # start, end, ancestors of the start

    def add(self, sequence: Sequence[int], shared: int, like: int) -> None:
        """Add a sequence whose first `shared` tokens are those of sequence number `like`."""
        ancestors = self.paths[like][:shared] if self.paths else []
        start = len(self.ids)
        self.ids += sequence[shared:]
        self.positions += range(shared, len(sequence))
        self.paths.append([*ancestors, *range(start, len(self.ids))])
        if len(self.ids) > start:
            self.branches.append((start, len(self.ids), ancestors))

    @property
    def is_chain(self) -> bool:
        """Whether this is a single sequence (and beginnings of it): causal attention then does the same."""
        return len(self.branches) <= 1

    def visible(self, length: int) -> Tensor:
        """Which nodes each node attends to: bool [length, length]; padding after the last node sees itself."""
        visible_LL = torch.eye(length, dtype=torch.bool)
        for start, end, ancestors in self.branches:
            visible_LL[start:end, ancestors] = True
            visible_LL[start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
        return visible_LL


def chain(sequence: Sequence[int]) -> Tree:
    """A tree of one sequence."""
    tree = Tree()
    tree.add(sequence, 0, 0)
    return tree


def grow(sequences: Sequence[list[int]], largest: int) -> list[tuple[Tree, list[int]]]:
    """Trees over all sequences, each with the numbers of its sequences (in the order of its `paths`).

    A sequence joins a tree if it shares at least half of its tokens with the tree's last one (sequences are taken in
    lexicographic order, so its nearest relative came just before) and the tree stays within `largest` nodes.
    """
    trees: list[tuple[Tree, list[int]]] = []
    for number in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        sequence = sequences[number]
        if trees:
            tree, members = trees[-1]
            shared = shared_length(sequences[members[-1]], sequence)
            if 2 * shared >= len(sequence) and len(tree.ids) + len(sequence) - shared <= largest:
                tree.add(sequence, shared, -1)
                members.append(number)
                continue
        trees.append((chain(sequence), [number]))
    return trees


def shared_length(a: list[int], b: list[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def mask(trees: Sequence[Tree], length: int, dtype: torch.dtype) -> Tensor:
    """What attention scores get added: 0 where a node may look, the most negative number elsewhere: [R, 1, L, L]."""
    visible_RLL = torch.stack([tree.visible(length) for tree in trees])
    lowest = torch.finfo(dtype).min
    return torch.zeros(visible_RLL.shape, dtype=dtype).masked_fill(~visible_RLL, lowest)[:, None]
