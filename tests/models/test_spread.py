"""A model spread over CPU and disk, as over GPUs: the same answers, states and checkpoints as in one piece."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, assert_same_results, read_metrics, untimed
from tests.evaluation.test_scorer import prompts, requests
from tests.models.families import build, families
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.evaluation.maxlogit import max_logits
from unlearn.evaluation.scorer import Scorer
from unlearn.experiment import run
from unlearn.methods.randomness import generator
from unlearn.models.cutting import CutModel
from unlearn.models.delta import check_delta
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.models.spread import keep_loaded, placement
from unlearn.paper.theory.finished_run import plain_kernels
from unlearn.paper.theory.predicted import Predicted

TOY = str(ROOT / "unlearn/toy/model")
WHOLE, SPREAD = Source(TOY, device="cpu"), Source(TOY, device="balanced", max_memory={"cpu": "1500KiB"})
TRAINED = [f"model.layers.{n}.mlp.down_proj.weight" for n in (1, 2, 3)]
MOST = ("model.device=balanced", "model.max_memory={cpu:1500KiB}")  # embeddings and layer 0


def changed(model):
    keep_loaded(model, TRAINED)
    noise = generator(0, "test")
    return {
        name: w + 0.01 * torch.randn(w.shape, generator=noise)
        for name, w in ((name, model.get_parameter(name)) for name in TRAINED)
    }


@pytest.fixture
def models():
    whole, spread = load_whole(WHOLE), load_whole(SPREAD)
    assert spread.hf_device_map["model.layers.0"] == "cpu"
    assert spread.hf_device_map["model.layers.1"] == spread.hf_device_map["lm_head"] == "disk"
    assert spread.get_parameter(TRAINED[0]).device.type == "meta"
    return whole, spread


def test_answers_of_both_models_of_a_group_are_the_same(models):
    tokenizer, answers = load_tokenizer(WHOLE), []
    for model in models:
        group = ModelGroup(model, [changed(model), {name: model.get_parameter(name).data for name in TRAINED}])
        scorer = Scorer(group, tokenizer, 1000)
        assert scorer.shares_prefixes
        assert group.shares
        scored = []
        for number in range(2):
            with scorer.member(number):
                scored.append(scorer.loglikelihood(requests(prompts())))
        measured = max_logits(group, tokenizer, [context for context, _ in prompts()], count=4, tokens_per_batch=500)
        answers.append((scored, [m.values_NK.tolist() for m in measured]))
        assert scored[0] != scored[1]
    assert answers[0] == answers[1]
    assert models[1].get_parameter("model.layers.5.mlp.down_proj.weight").device.type == "meta"  # still on the disk


def test_states_logits_and_derivatives_are_the_same(models):
    ids_BT, found = torch.arange(4, 20).view(2, 8), []
    for model in models:
        cut = CutModel(model, 3)
        h_BTD = cut.span(cut.prefix(ids_BT), changed(model))
        logits_NV = cut.logits(cut.suffix(h_BTD, ids_BT).flatten(0, 1))
        at = Predicted(plain_kernels(model), 3, [5, 6, 7])
        direction_1V = torch.ones(1, model.config.vocab_size)
        derivatives = at.pushed(torch.ones_like(at.nothing_1D)), at.pulled(direction_1V)
        found.append((h_BTD, logits_NV, *at.loss_and_gradient(at.nothing_1D, 9), *derivatives))
    for whole, spread in zip(*found, strict=True):
        assert torch.equal(whole, spread)


def test_a_run_and_its_export_are_the_same(short, tmp_path):
    evaluation = ("eval=toy", "eval.limit=3", "eval.maxlogit.tokens=2", "eval.maxlogit.queries=[default]")
    folders = [
        run(short(*evaluation, "eval.maxlogit.roles=[retain]", *more, f"output_root={tmp_path / name}"))
        for name, more in (("whole", ()), ("spread", MOST))
    ]
    assert folders[0].name == folders[1].name
    metrics = [untimed(read_metrics(folder)) for folder in folders]
    assert metrics[0] == metrics[1]
    assert_same_results(*folders)
    exported = []
    for folder in folders:
        out = tmp_path / f"{folder.parent.parent.name}-exported"
        main(["export", str(folder), str(out)])
        exported.append(load_file(out / "model.safetensors"))
    assert exported[0].keys() == exported[1].keys()
    assert all(torch.equal(w, exported[1][name]) for name, w in exported[0].items())
    with pytest.raises(SystemExit) as told:
        main(["attack", str(folders[1]), "attack=lens"])
    assert "attacks change weights, on one device only. Add e.g. model.device=auto." in str(told.value)
    main(["attack", str(folders[1]), "attack=lens", "model.device=cpu", "model.max_memory=null"])
    assert list((folders[1] / "attacks").glob("lens-*/scores.parquet"))


@pytest.mark.parametrize("family", ["gemma3", "gpt2", "llama4", "mixtral"])  # towers, tied heads, experts
def test_other_models(family, tmp_path):
    source = build(families()[family], tmp_path)
    whole = load_whole(source)
    most = f"{sum(p.numel() * p.element_size() for p in whole.parameters()) // 2048}KiB"
    spread = load_whole(replace(source, device="balanced", max_memory={"cpu": most}))
    assert "disk" in spread.hf_device_map.values()
    weights = {name: w + 0.01 for name, w in CutModel(whole, 3).frozen.items()}
    assert CutModel(spread, 3).frozen.keys() == weights.keys()
    answers = []
    for model in (whole, spread):
        check_delta(model, weights)
        group = ModelGroup(model, [weights])
        scored = Scorer(group, load_tokenizer(WHOLE), 100).loglikelihood(requests(prompts()[:6]))
        [measured] = max_logits(
            group, load_tokenizer(WHOLE), ["The river is", "The soil"], count=3, tokens_per_batch=50
        )
        answers.append([loglikelihood for loglikelihood, _ in scored] + measured.values_NK.flatten().tolist())
    assert answers[1] == pytest.approx(answers[0], rel=1e-5)  # grouped products of experts differ by rounding


def test_what_cannot_be_spread_is_refused(short):
    with pytest.raises(
        UserError, match=r"not allowed with method=npo, which trains through the whole model on one device"
    ):
        run(short("method=npo", *MOST))
    with pytest.raises(UserError, match=r"model\.max_memory needs model\.device=balanced, but model\.device=auto\."):
        short("model.max_memory={cpu:1GiB}")
    with pytest.raises(UserError, match=r"model\.max_memory=\{gpu:1GiB\} is not allowed: .* \{0:40GiB,cpu:100GiB\}"):
        short("model.device=balanced", "model.max_memory={gpu:1GiB}")
    with pytest.raises(UserError, match=r"model\.max_memory=\{cpu:much\} is not allowed"):
        short("model.device=balanced", "model.max_memory={cpu:much}")
    large = short("model.device=balanced", "model.max_memory={0:40GiB,cpu:8GiB}").model.max_memory
    assert placement(large, "") == placement({"0": "40GiB", "cpu": "8GiB"}, "")  # as run.json has it
