"""The methods on likelihoods with RNA, written plainly to be compared with: two whole models, autograd over everything.

It shares no code with `unlearn` but the keyed generator that defines the noise. Samples are run one by one without
padding, unless every position counts. Float64 throughout.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid, pad

from tests.training.reference import adamw, padded_left
from unlearn.methods.randomness import generator


@dataclass
class Setting:
    """One run; r is the reference, u the updated model."""

    method: str  # npo, simnpo, dpo, grad_diff
    retain: str  # kl, mse, nll
    beta: float
    gamma: float  # simnpo
    mask: str  # none, padding, padding_and_bos
    # As published (mask none): likelihoods are means over the batch, r sees padding, and u's S of the preferred rows
    # stands for r's (dpo).
    published: bool
    alpha: dict[str, float]  # by topic
    nu: float
    lr: float
    layer: int
    batch_size: int
    seed: int = 0
    eps: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    optimizer: str = "adamw"  # adamw, adamw_published


def batches(s, rows):
    """What is run at once: (ids, attention mask) of each row by itself, or of all of them, padded on the left."""
    if s.mask != "none":
        return [(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long)) for row in rows]
    return [padded_left(rows)]


def log_softmax(model, ids_BT, mask_BT):
    """Logarithms of the next-token distributions at every position."""
    return model(input_ids=ids_BT, attention_mask=mask_BT).logits.log_softmax(dim=-1)


def add_at(layer_module, noise_BTD):
    """A hook that adds the noise to the output of a decoder layer."""

    def add(_module, _args, output):
        if isinstance(output, tuple):
            return (output[0] + noise_BTD, *output[1:])
        return output + noise_BTD

    return layer_module.register_forward_hook(add)


def likelihoods(model, s, rows, attend_mask=True):
    """S and M: two lists with a number for each sample, or with one number for the whole batch."""
    tokens = []  # each sample's log-likelihoods of its tokens but the first
    for ids_BT, mask_BT in batches(s, rows):
        log_p_BTV = log_softmax(model, ids_BT, mask_BT if attend_mask else None)
        tokens += [log_p_TV[range(len(x_T) - 1), x_T[1:]] for log_p_TV, x_T in zip(log_p_BTV, ids_BT, strict=True)]
    if s.published:
        one = mean(torch.cat(tokens))
        return [one], [one]
    return [ll_T.sum() for ll_T in tokens], [mean(ll_T) for ll_T in tokens]


def distributions(model, s, rows, attend_mask=True, key=None):
    """For each sample log p at its counted positions: a list of [T_i, V]; with the noise of this key, if there is one.

    A key is (topic, step).
    """
    first = 1 if s.mask == "padding_and_bos" else 0
    samples = []
    for ids_BT, mask_BT in batches(s, rows):
        hook = None
        if key is not None:
            shape = (ids_BT.shape[1] - first, model.config.n_embd)
            numbers = range(len(samples), len(samples) + len(ids_BT))  # of these rows in the batch
            z = [torch.randn(shape, generator=generator(s.seed, "noise", *key, row)).double() for row in numbers]
            hook = add_at(model.transformer.h[s.layer], s.nu * pad(torch.stack(z), (0, 0, first, 0)))
        samples += list(log_softmax(model, ids_BT, mask_BT if attend_mask else None)[:, first:])
        if hook is not None:
            hook.remove()
    return samples


def mean(values):
    """Mean of a vector; 0 where it is empty."""
    return values.mean() if values.numel() else values.sum()


def average(numbers):
    """Over samples."""
    return sum(numbers) / len(numbers)


def forget_loss(reference, updated, s, forget_rows, preferred_rows):
    """The method's loss on the forget rows; DPO prefers the preferred rows to them."""
    sum_u, mean_u = likelihoods(updated, s, forget_rows)
    if s.method == "grad_diff":
        return average(mean_u)
    if s.method == "simnpo":
        return average([-(2 / s.beta) * logsigmoid(-s.beta * m - s.gamma) for m in mean_u])
    with torch.no_grad():
        sum_r, _ = likelihoods(reference, s, forget_rows, not s.published)
    ratios = [u - r for u, r in zip(sum_u, sum_r, strict=True)]
    if s.method == "npo":
        return average([-(2 / s.beta) * logsigmoid(-s.beta * ratio) for ratio in ratios])
    if s.method != "dpo":
        raise ValueError(s.method)
    preferred_u, _ = likelihoods(updated, s, preferred_rows)
    with torch.no_grad():
        preferred_r = preferred_u if s.published else likelihoods(reference, s, preferred_rows)[0]
    preferred_ratios = [u - r for u, r in zip(preferred_u, preferred_r, strict=True)]
    margins = [preferred - forget for preferred, forget in zip(preferred_ratios, ratios, strict=True)]
    return average([-(2 / s.beta) * logsigmoid(s.beta * margin) for margin in margins])


def retain_loss(reference, updated, s, rows, key):
    """Distance to the noisy reference on the retain rows, or their negative log-likelihood."""
    if s.retain == "nll":
        return -average(likelihoods(updated, s, rows)[1])
    with torch.no_grad():
        log_q = distributions(reference, s, rows, not s.published, key)
    per_sample = []
    for log_q_TV, log_p_TV in zip(log_q, distributions(updated, s, rows), strict=True):
        if s.retain == "kl":
            per_sample.append(mean((log_q_TV.exp() * (log_q_TV - log_p_TV)).sum(dim=-1)))
        elif s.retain == "mse":
            per_sample.append(mean((log_q_TV - log_p_TV).square().mean(dim=-1)))
        else:
            raise ValueError(s.retain)
    return average(per_sample)


def take(rows, at, s):
    """A batch of a corpus that starts over at its end."""
    return [rows[i % len(rows)] for i in range(at, at + s.batch_size)]


def unlearn(model, topics, preferred, steps, s):
    """Train a copy of `model`; returns it and each step's two losses, the retain loss not weighted.

    `topics` is a list of (name, forget rows, retain rows); `preferred` is a list of rows, for DPO only.
    """
    reference = copy.deepcopy(model).eval()
    updated = copy.deepcopy(model).eval().requires_grad_(True)
    trained = [updated.transformer.h[i].mlp.c_proj.weight for i in (s.layer - 2, s.layer - 1, s.layer)]
    first, second = [torch.zeros_like(w) for w in trained], [torch.zeros_like(w) for w in trained]
    losses = []
    for step in range(steps):
        name, forget_rows, retain_rows = topics[step % len(topics)]
        at = (step // len(topics)) * s.batch_size
        preferred_rows = take(preferred, step * s.batch_size, s) if s.method == "dpo" else None
        forget = forget_loss(reference, updated, s, take(forget_rows, at, s), preferred_rows)
        retain = retain_loss(reference, updated, s, take(retain_rows, at, s), (name, step))
        updated.zero_grad()
        (forget + s.alpha[name] * retain).backward()
        adamw(trained, first, second, step + 1, s)
        losses.append((forget.item(), retain.item()))
    return updated, losses
