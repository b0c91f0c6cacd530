"""`unlearn scale`: what is measured at each layer, and that its values follow a model's scale."""

import math
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from unlearn.cli.main import main
from unlearn.runs.scale import coefficients, default_layer, measure

TOY = ROOT / "unlearn/toy/model"


def test_norms_spreads_and_inputs_of_every_layer(tiny_llama):
    ids = [torch.arange(1, 9)[None], torch.arange(9, 30)[None]]
    scales = measure(tiny_llama, ids, None)
    seen = []
    hook = tiny_llama.model.layers[2].mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    hidden_TD = torch.cat([tiny_llama(x, output_hidden_states=True).hidden_states[3][0] for x in ids])
    hook.remove()
    assert [scale.layer for scale in scales] == list(range(6))
    assert math.isclose(scales[2].norm, hidden_TD.norm(dim=-1).mean().item(), rel_tol=1e-5)
    assert math.isclose(scales[2].spread, hidden_TD.std(dim=0).median().item(), rel_tol=1e-5)
    assert math.isclose(scales[2].input_norm, torch.cat(seen).abs().sum(dim=-1).mean().item(), rel_tol=1e-5)


def test_coefficients_follow_the_scale(tiny_llama, conf):
    scales = measure(tiny_llama, [torch.arange(1, 30)[None]], None)
    small = coefficients(scales, 3, 16, conf("train.steps=100"))
    wider = [replace(s, norm=10 * s.norm, spread=10 * s.spread) for s in scales]
    large = coefficients(wider, 3, 16, conf("train.steps=100"))
    assert math.isclose(large["methods"]["rmu"]["c"], 10 * small["methods"]["rmu"]["c"], rel_tol=0.1)
    assert math.isclose(large["methods"]["rsv"]["nu"], 10 * small["methods"]["rsv"]["nu"], rel_tol=0.1)
    assert math.isclose(large["lr"], 10 * small["lr"], rel_tol=0.1)
    assert large["methods"]["adaptive_rmu"]["beta"] == small["methods"]["adaptive_rmu"]["beta"]
    longer = coefficients(scales, 3, 16, conf("train.steps=1000"))
    assert math.isclose(longer["lr"], small["lr"] / 10, rel_tol=0.1)


def test_where_a_norm_bounds_the_matrices_it_decides_the_layer_the_target_and_the_rate(tiny_llama, conf):
    free = measure(tiny_llama, [torch.arange(1, 30)[None]], None)
    reached = [0.1, 0.1, 0.2, 0.6, 0.3, 0.4]  # norms
    bounded = [replace(s, median=s.norm, reach=r * s.norm) for s, r in zip(free, reached, strict=True)]
    assert default_layer(free) == 2  # 7 of 32 layers, and no layer before
    assert default_layer([*bounded[:3], *(replace(s, layer=i) for i, s in enumerate(bounded[3:] * 5, 3))]) == 3
    config = conf("train.steps=100")
    values = coefficients(bounded, 3, 16, config)
    assert math.isclose(values["methods"]["rmu"]["c"], 1.2 * free[3].norm, rel_tol=0.1)
    assert values["methods"]["adaptive_rmu"]["beta"] == 1.2
    stronger = [replace(s, output=10 * s.output) for s in bounded]
    assert math.isclose(coefficients(stronger, 3, 16, config)["lr"], 10 * values["lr"], rel_tol=0.1)
    assert coefficients([replace(s, output=10 * s.output) for s in free], 3, 16, config) == coefficients(
        free, 3, 16, config
    )


def printed_file(capsys, *arguments):
    main(["scale", *arguments, "--documents", "4"])
    output = capsys.readouterr().out
    return yaml.safe_load(output[output.index("# Starting values") :])


def test_the_file_for_conf_model_is_complete(capsys):
    found = printed_file(capsys, "model=toy", "data=toy", "--layer", "4")
    known = yaml.safe_load((ROOT / "conf/model/toy.yaml").read_text())
    assert known.keys() - found.keys() == {"masks", "schedules"}
    assert {"nu", "nu_attacks", "nu_likelihood"} == found["grids"].keys() <= known["grids"].keys()
    assert (found["name"], found["num_layers"], found["layer"]) == ("toy", 8, 4)


@pytest.mark.parametrize("factor", [0.5, 20.0])
def test_a_checkpoint_of_another_scale(capsys, tmp_path, factor):
    # Embeddings, and all that is added to the states, times a factor: every state is that much larger.
    for file in TOY.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    [weights] = TOY.glob("*.safetensors")
    tensors = load_file(weights)
    for name in tensors:
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            tensors[name] = tensors[name] * factor
    save_file(tensors, tmp_path / weights.name, {"format": "pt"})
    there = printed_file(capsys, "model=toy", "data=toy")
    here = printed_file(capsys, str(tmp_path), "data=toy")
    assert math.isclose(here["methods"]["rmu"]["c"] / there["methods"]["rmu"]["c"], factor, rel_tol=0.1)
    assert math.isclose(here["methods"]["rsv"]["nu"] / there["methods"]["rsv"]["nu"], factor, rel_tol=0.1)


def test_a_layer_that_there_is_not_is_an_error_before_any_weight(capsys):
    for layer in ("1", "8"):
        with pytest.raises(SystemExit, match=rf"Error: --layer {layer} is not allowed: it must be in 2\.\.7"):
            main(["scale", "model=toy", "data=toy", "--layer", layer])
