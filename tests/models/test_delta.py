"""The changed matrices: saved in the model's dtype, put into the right model, taken out again."""

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unlearn.errors import UserError
from unlearn.models.delta import METADATA, apply_delta, check_delta, dtype_of, load_delta, load_state, save_delta

NAME = "model.layers.1.mlp.down_proj.weight"


def saved(tmp_path, model, change=1.0):
    frozen = {NAME: model.get_parameter(NAME).detach()}
    save_delta(
        tmp_path / "d.safetensors",
        {NAME: frozen[NAME].float() + change},
        frozen,
        {"control.bio": torch.ones(4), "coefficient.bio": torch.tensor(2.0)},
        {"model": "x"},
    )
    return load_delta(tmp_path / "d.safetensors")


def test_round_trip_in_the_models_dtype(tiny_llama, tmp_path):
    model = tiny_llama.bfloat16()
    weights, metadata = saved(tmp_path, model, change=0.123456789)
    expected = (model.get_parameter(NAME).float() + 0.123456789).bfloat16()
    assert list(weights) == [NAME]
    assert torch.equal(weights[NAME], expected)
    assert metadata["model"] == "x"


def test_a_delta_replaces_its_matrix_only(tiny_llama, tmp_path):
    before = {name: p.clone() for name, p in tiny_llama.named_parameters()}
    weights, metadata = saved(tmp_path, tiny_llama)
    check_delta(tiny_llama, weights, metadata)
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())
    apply_delta(tiny_llama, weights, metadata)
    assert all(torch.equal(p, before[n] + (n == NAME)) for n, p in tiny_llama.named_parameters())


def test_another_base_model_is_refused_and_left_alone(tiny_llama, tmp_path):
    weights, metadata = saved(tmp_path, tiny_llama)
    tiny_llama.get_parameter(NAME).data[0, 0] += 1e-3
    before = tiny_llama.get_parameter(NAME).clone()
    with pytest.raises(UserError, match="another base model"):
        apply_delta(tiny_llama, weights, metadata)
    with pytest.raises(UserError, match="no parameter 'other'"):
        apply_delta(tiny_llama, {"other": torch.ones(1)}, {})
    assert torch.equal(tiny_llama.get_parameter(NAME), before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        load_delta(tmp_path / "d.safetensors")


def rewritten(tmp_path, change, metadata=None):
    """A saved delta, changed: {name: tensor} -> {name: tensor}."""
    file = tmp_path / "d.safetensors"
    with safe_open(file, framework="pt") as stored:
        entries = stored.metadata()
    save_file(change(load_file(file)), file, entries if metadata is None else metadata)
    return file


def test_a_file_that_is_cut_short_is_a_sentence(tiny_llama, tmp_path):
    saved(tmp_path, tiny_llama)
    file = tmp_path / "d.safetensors"
    whole = file.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        for read in (load_delta, load_state, dtype_of):
            with pytest.raises(UserError, match=r"d\.safetensors: not a readable delta, perhaps cut short"):
                read(file)


@pytest.mark.parametrize(
    ("change", "metadata", "told"),
    [
        (lambda d: {n: w for n, w in d.items() if n != NAME}, None, f"{NAME} is missing"),
        (lambda d: d, {}, "it names no matrix"),
        (lambda d: d, {METADATA: "[" * 100_000}, "its metadata are not those of a delta"),
        (lambda d: d, {METADATA: "[1]"}, "its metadata are not those of a delta"),
        (lambda d: d | {NAME: d[NAME].to(torch.int8)}, None, rf"one of the dtypes .*, not I8 \({NAME}\)"),
    ],
)
def test_a_file_with_other_content_is_a_sentence(tiny_llama, tmp_path, change, metadata, told):
    saved(tmp_path, tiny_llama)
    with pytest.raises(UserError, match=told):
        load_delta(rewritten(tmp_path, change, metadata))


@pytest.mark.parametrize("shape", [(), (1,), (16, 1), (32, 16)])
def test_a_matrix_of_another_shape_is_not_stretched(tiny_llama, tmp_path, shape):
    saved(tmp_path, tiny_llama)
    before = tiny_llama.get_parameter(NAME).clone()
    delta = load_delta(rewritten(tmp_path, lambda d: d | {NAME: torch.ones(shape)}))
    shapes = f"{shape}, in the model (16, 32)"
    with pytest.raises(UserError, match=f"{NAME} has the shape {re.escape(shapes)}"):
        apply_delta(tiny_llama, *delta)
    assert torch.equal(tiny_llama.get_parameter(NAME), before)
