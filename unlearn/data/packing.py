"""Packing: several short rows of a batch share one line, so that less padding is computed.

Sequences on one line do not attend to each other: transformers separates them where positions restart at 0.
B batch, T tokens, D hidden size, R lines of L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unlearn.data.batches import Padded, to_device


@dataclass(frozen=True)
class Packed:
    """Token ids and positions, int64 [R, L], and the line, start and length of each row of the batch."""

    ids_RL: Tensor
    positions_RL: Tensor
    places: list[tuple[int, int, int]]

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return Packed(to_device(self.ids_RL, device), to_device(self.positions_RL, device), self.places)

    def unpack(self, h_RLD: Tensor) -> Tensor:
        """The rows of the batch again, padded on the right with zeros: [B, T, D]."""
        return pad_sequence([h_RLD[r, start : start + n] for r, start, n in self.places], batch_first=True)

    def repack(self, h_BTD: Tensor) -> Tensor:
        """The inverse of `unpack`, with zeros on the rest of each line: [R, L, D]."""
        lines: list[list[Tensor]] = [[] for _ in self.ids_RL]
        # The rows of a line lie behind each other without gaps, so the order of their starts is enough.
        for row in sorted(range(len(self.places)), key=lambda i: self.places[i][1]):
            line, _, n = self.places[row]
            lines[line].append(h_BTD[row, :n])
        h_RLD = pad_sequence([torch.cat(line) for line in lines], batch_first=True)
        rest = self.ids_RL.shape[1] - h_RLD.shape[1]
        return torch.nn.functional.pad(h_RLD, (0, 0, 0, rest)) if rest else h_RLD


def pack(part: Padded) -> Packed | None:
    """Pack a right-padded batch into fewer lines, each as long as the longest row: first fit, longest rows first.

    Returns None if that saves no line.
    """
    lengths = part.mask_BT.sum(dim=1).tolist()
    longest = part.ids_BT.shape[1]
    filled: list[int] = []
    places = [(0, 0, 0)] * len(lengths)
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        line = next((r for r, used in enumerate(filled) if used + lengths[row] <= longest), len(filled))
        if line == len(filled):
            filled.append(0)
        places[row] = (line, filled[line], lengths[row])
        filled[line] += lengths[row]
    if len(filled) == len(lengths):
        return None
    # The rest of a line is one more sequence. Its output is not used.
    ids_RL = part.ids_BT.new_zeros(len(filled), longest)
    positions_RL = torch.stack([torch.arange(longest) - used for used in filled])
    for row, (line, start, n) in enumerate(places):
        ids_RL[line, start : start + n] = part.ids_BT[row, :n]
        positions_RL[line, start : start + n] = torch.arange(n)
    return Packed(ids_RL, positions_RL, places)
