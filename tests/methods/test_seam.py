"""A method of each family in a few lines, as CONTRIBUTING.md shows them, joins without a change to anything else."""

from dataclasses import dataclass

import pytest
import torch

from unlearn.data.batches import batches
from unlearn.data.corpora import Topic
from unlearn.methods.likelihood import LikelihoodMethod
from unlearn.methods.misdirection import MisdirectionMethod
from unlearn.methods.objective import Setup
from unlearn.methods.rna import RNA
from unlearn.models.cutting import CutModel
from unlearn.training.loop import train_variants
from unlearn.training.variant import make_variant

TOPIC = Topic("bio", [[1, 3, 4, 5, 6], [1, 7, 8]] * 4, [[1, 9, 10], [1, 11, 12, 13]] * 4, {})


@dataclass(frozen=True)
class Opposite(MisdirectionMethod):
    """On representations: forget representations are pushed to -c times the frozen ones."""

    c: float

    def target(self, batch):
        return -self.c * batch.frozen()


@dataclass(frozen=True)
class Unlikelihood(LikelihoodMethod):
    """On likelihoods: -log(1 - p^(1/n)) of a sample of n tokens."""

    def forget(self, likelihoods):
        return -likelihoods.updated("forget").mean_B.exp().neg().log1p().mean()


@pytest.mark.parametrize(
    ("method", "needs_logits"), [(Opposite(0.5, rna=RNA(0.05)), False), (Unlikelihood(rna=RNA(0.05)), True)]
)
def test_a_method_of_a_few_lines_trains_with_rna(tiny_llama, method, needs_logits):
    before = {name: p.clone() for name, p in tiny_llama.named_parameters()}
    cut = CutModel(tiny_llama, layer=3)
    setup = Setup(["bio"], cut.dim, cut.device, 0, 1.0, "padding")
    variant = make_variant(method.objective(setup), cut.frozen, lr=1e-2)
    stream = batches([TOPIC], steps=6, batch_size=2, pad_id=0, side="right")
    train_variants(cut, [variant], stream, mask_padding=False)
    assert method.needs_logits is needs_logits
    assert variant.records[-1].forget_loss < variant.records[0].forget_loss
    assert variant.records[0].retain_loss > 0  # noise
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())
    assert all(not torch.equal(w, before[name]) for name, w in variant.weights.items())
