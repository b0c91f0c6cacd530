"""Rows of a batch on few lines: the same representations, the same training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2Model

from tests.training.test_loop import SETTINGS, objective
from unlearn.data.batches import batches, pad
from unlearn.data.corpora import Topic
from unlearn.data.packing import pack
from unlearn.models.cutting import CutModel
from unlearn.training.loop import train_variants
from unlearn.training.variant import make_variant

ROWS = [[3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17], [18]]


@given(st.lists(st.lists(st.integers(3, 40), min_size=1, max_size=12), min_size=1, max_size=8))
def test_every_token_is_there_once_at_its_position(rows):
    part = pad(rows, 0, "right")
    packed = pack(part)
    total, longest = sum(map(len, rows)), max(map(len, rows))
    if packed is None:
        return
    lines, length = packed.ids_RL.shape
    assert length == longest
    assert -(-total // longest) <= lines < len(rows)
    for row, (line, start, n) in zip(rows, packed.places, strict=True):
        assert packed.ids_RL[line, start : start + n].tolist() == row
        assert packed.positions_RL[line, start : start + n].tolist() == list(range(n))
    taken = {(line, i) for line, start, n in packed.places for i in range(start, start + n)}
    assert len(taken) == total
    unpacked = packed.unpack(packed.ids_RL[..., None].float())[..., 0]
    assert torch.equal(unpacked, (part.ids_BT * part.mask_BT).float())
    assert torch.equal(packed.repack(unpacked[..., None])[..., 0], packed.ids_RL.float())


def test_rows_of_one_length_are_left_alone():
    assert pack(pad([[1, 2, 3]] * 4, 0, "right")) is None


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_packed_rows_have_the_representations_of_rows_alone(tiny_llama, kernel):
    tiny_llama.set_attn_implementation(kernel)
    cut = CutModel(tiny_llama, 3)
    assert cut.packs
    packed = pack(pad(ROWS, 0, "right"))
    assert packed.ids_RL.shape == (2, 8)
    h_BTD = packed.unpack(cut.span(cut.prefix(packed.ids_RL, positions_BT=packed.positions_RL), cut.frozen))
    for row, h_TD in zip(ROWS, h_BTD, strict=True):
        alone_BTD = cut.span(cut.prefix(torch.tensor([row])), cut.frozen)
        torch.testing.assert_close(h_TD[: len(row)], alone_BTD[0])


def test_training_on_packed_rows_gives_the_losses_and_matrices_of_padded_ones(tiny_llama):
    cut = CutModel(tiny_llama, 3)
    found = []
    for packs in (True, False):
        cut.packs = packs
        variant = make_variant(objective(nu=0.1), cut.frozen, **SETTINGS)
        stream = batches([Topic("bio", ROWS, ROWS[::-1], {})], steps=3, batch_size=4, pad_id=0, side="right")
        train_variants(cut, [variant], stream, mask_padding=False)
        found.append((variant, variant.records))
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.facts == pytest.approx(b.facts, rel=1e-4, abs=1e-6)
    for name, w in found[0][0].weights.items():
        torch.testing.assert_close(w, found[1][0].weights[name], rtol=1e-3, atol=1e-4)


def test_a_model_that_lets_packed_rows_see_each_other_is_not_packed(tiny_llama, monkeypatch):
    real = tiny_llama.model.forward
    monkeypatch.setattr(tiny_llama.model, "forward", lambda *a, position_ids=None, **k: real(*a, **k))
    assert not CutModel(tiny_llama, 3).packs


def test_learned_positions_are_packed_too():
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=50, n_embd=16, n_layer=6, n_head=2, initializer_range=0.2)).eval()
    assert CutModel(model.requires_grad_(False), 3).packs
