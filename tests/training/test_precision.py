"""What the float32 master copy changes on a bfloat16 model: updates that round away without it, and the loss."""

import pytest
import torch

from tests.conftest import ROOT
from unlearn.data.batches import batches
from unlearn.data.corpora import load_topic
from unlearn.methods.misdirection_loss import Misdirection
from unlearn.methods.noise import Augmentation
from unlearn.methods.rmu import RMU
from unlearn.methods.rna import RNA
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_tokenizer, load_up_to
from unlearn.training.loop import train_variants
from unlearn.training.optimizer import Optimizer
from unlearn.training.variant import make_variant

TOY = ROOT / "unlearn" / "toy"


def trained(steps: int):
    """The embedded model in bfloat16 after so many steps of RMU: frozen matrices, and a variant of each precision."""
    source = Source(str(TOY / "model"), dtype="bfloat16", device="cpu")
    cut = CutModel(load_up_to(source, 5), 5)
    files = str(TOY / "data" / "forget-bio.jsonl"), str(TOY / "data" / "retain.jsonl")
    lengths = {"max_length": 32, "retain_max_length": 32}
    topic = load_topic("bio", *files, load_tokenizer(source), **lengths, documents=4 * steps, on_exhausted="error")
    controls = {"bio": RMU(3.0).control_vector(cut.dim, torch.Generator().manual_seed(0))}
    objective = Misdirection(RMU(3.0), controls, 10.0, "padding", Augmentation(RNA(0.03), 0))
    lr = 1e-6  # about half a unit in the last place of these matrices in bfloat16
    variants = {p: make_variant(objective, cut.frozen, lr, Optimizer(precision=p)) for p in ("master", "model")}
    stream = batches([topic], steps=steps, batch_size=4, pad_id=0, side="right")
    train_variants(cut, list(variants.values()), stream, mask_padding=False)
    return cut.frozen, variants


def unmoved(frozen, weights) -> float:
    """Share of the numbers that are what they were."""
    same = [(weights[name].detach() == w.to(weights[name].dtype)).float() for name, w in frozen.items()]
    return torch.cat([s.flatten() for s in same]).mean().item()


def test_without_a_master_copy_updates_round_away():
    # After one step every number has been updated by lr (AdamW's first step), so what has not moved rounded away.
    frozen, stepped = trained(1)
    lost = {precision: unmoved(frozen, variant.weights) for precision, variant in stepped.items()}
    assert lost["master"] < 0.01
    assert lost["model"] > 0.1


@pytest.mark.slow  # alone measures what rounding costs over a hundred steps
def test_without_a_master_copy_less_is_forgotten(record_property):
    losses = {precision: variant.records for precision, variant in trained(100)[1].items()}
    first = losses["master"][0].forget_loss
    last = {p: sum(r.forget_loss for r in losses[p][-10:]) / 10 for p in losses}
    record_property("first and last losses", (first, last))
    assert losses["model"][0].forget_loss == pytest.approx(first)  # both start from the same model
    assert first - last["model"] < 0.8 * (first - last["master"])
