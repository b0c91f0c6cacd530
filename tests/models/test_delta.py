"""The changed matrices: saved in the model's dtype, put into the right model, taken out again."""

import pytest
import torch

from unlearn.errors import UserError
from unlearn.models.delta import apply_delta, check_delta, load_delta, save_delta

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
