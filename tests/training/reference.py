"""Algorithm 1 written plainly from the paper, to be compared with: two whole models, hooks, autograd over everything.

It shares no code with `unlearn` but the keyed generator that defines the noise. Samples are run one by one without
padding, unless every position counts. Float64 throughout.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch

from unlearn.methods.randomness import generator


@dataclass
class Setting:
    """One run; the names are the paper's."""

    method: str  # rmu, adaptive_rmu, rsv
    coefficient: float  # c or beta
    norm: str  # sample, first_batch
    mask: str  # none, padding, padding_and_bos
    optimizer: str  # adamw, adamw_published
    alpha: float
    nu: float
    lr: float
    layer: int
    batch_size: int
    seed: int = 0
    eps: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)


def hidden(model, layer, ids_BT, attention_mask_BT=None):
    """The output of decoder layer l, read by a hook during a whole forward pass."""
    seen = []
    hook = model.transformer.h[layer].register_forward_hook(lambda _module, _args, output: seen.append(output))
    model(input_ids=ids_BT, attention_mask=attention_mask_BT)
    hook.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def padded_left(rows):
    """Ids and attention mask of a batch, [B, T]."""
    longest = max(map(len, rows))
    ids_BT = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    return ids_BT, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def states(model, s, rows):
    """For each sample the representations at its counted positions: a list of [T_i, D]."""
    if s.mask == "none":  # every position of the batch
        return list(hidden(model, s.layer, *padded_left(rows)))
    first = 1 if s.mask == "padding_and_bos" else 0
    return [hidden(model, s.layer, torch.tensor([row]))[0, first:] for row in rows]


def mean_square(differences):
    """Over dimensions and tokens of a sample, then over samples; a sample without a counted token gives 0."""
    per_sample = [d.square().mean() if d.numel() else d.sum() for d in differences]
    return sum(per_sample) / len(per_sample)


def mean_norm(h_TD):
    """Token-averaged norm of one sample."""
    return h_TD.norm(dim=-1).mean() if h_TD.numel() else h_TD.sum()


def unlearn(model, topics, controls, steps, s):
    """Train a copy of `model`; returns it and each step's two losses, the retain loss not weighted.

    `topics` is a list of (name, forget rows, retain rows).
    """
    updated = copy.deepcopy(model).requires_grad_(True)
    trained = [updated.transformer.h[i].mlp.c_proj.weight for i in (s.layer - 2, s.layer - 1, s.layer)]
    first, second = [torch.zeros_like(w) for w in trained], [torch.zeros_like(w) for w in trained]
    kept: dict[str, torch.Tensor] = {}
    losses = []
    for step in range(steps):
        name, forget_rows, retain_rows = topics[step % len(topics)]
        at = (step // len(topics)) * s.batch_size
        forget_rows = [forget_rows[i % len(forget_rows)] for i in range(at, at + s.batch_size)]
        retain_rows = [retain_rows[i % len(retain_rows)] for i in range(at, at + s.batch_size)]
        with torch.no_grad():
            frozen_forget, frozen_retain = states(model, s, forget_rows), states(model, s, retain_rows)
        forget, retain = states(updated, s, forget_rows), states(updated, s, retain_rows)
        u_D = controls[name].double()
        if s.method == "adaptive_rmu" and s.norm == "first_batch" and name not in kept:
            kept[name] = (sum(mean_norm(h.detach()) for h in forget) / len(forget)).detach()
        targets = []
        for h_TD in frozen_forget:
            if s.method == "rmu":
                targets.append(s.coefficient * u_D)
            elif s.method == "adaptive_rmu":
                norm = kept[name] if s.norm == "first_batch" else mean_norm(h_TD)
                targets.append(s.coefficient * norm * u_D)
            else:
                targets.append(h_TD + s.coefficient * u_D)
        noisy = []
        for row, h_TD in enumerate(frozen_retain):
            noise_TD = torch.randn(h_TD.shape, generator=generator(s.seed, "noise", name, step, row))
            noisy.append(h_TD + s.nu * noise_TD.double())
        forget_loss = mean_square([h - y for h, y in zip(forget, targets, strict=True)])
        retain_loss = mean_square([h - y for h, y in zip(retain, noisy, strict=True)])
        updated.zero_grad()
        (forget_loss + s.alpha * retain_loss).backward()
        adamw(trained, first, second, step + 1, s)
        losses.append((forget_loss.item(), retain_loss.item()))
    return updated, losses


@torch.no_grad()
def adamw(trained, first, second, t, s):
    """AdamW without decay; the published one adds eps before the bias correction of the second moment."""
    b1, b2 = s.betas
    for w, m, v in zip(trained, first, second, strict=True):
        m.mul_(b1).add_(w.grad, alpha=1 - b1)
        v.mul_(b2).add_(w.grad.square(), alpha=1 - b2)
        if s.optimizer == "adamw_published":
            w -= s.lr * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (v.sqrt() + s.eps)
        else:
            w -= s.lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + s.eps)
