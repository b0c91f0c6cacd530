"""Lens, probe and LoRA: what is hidden is read, what was never known is not; the model stays as it is."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.attacks.test_attacks import CORPORA, SOURCE, TOY, accuracy, same, state, target_of
from tests.conftest import write_jsonl
from unlearn.attacks.lens import LogitLens
from unlearn.attacks.probe import Probe
from unlearn.attacks.relearning import Relearning, adapters
from unlearn.errors import UserError
from unlearn.evaluation.suite import Suite, load_suite
from unlearn.models.architectures import decoder_layers
from unlearn.models.loading import load_tokenizer, load_whole
from unlearn.records.scores import role_means

TASK = "toy_forget_bio"


@pytest.fixture(scope="module")
def suite():
    return load_suite({"forget": [TASK]}, {"default": []}, include_path=str(TOY / "tasks"), subset=160)


@pytest.fixture
def knowing(suite):
    """The toy model as a target."""
    return target_of(load_whole(SOURCE), load_tokenizer(SOURCE), suite)


@pytest.fixture
def never_knew(knowing):
    """A model of the same shape that never knew anything."""
    torch.manual_seed(0)
    return replace(knowing, model=AutoModelForCausalLM.from_config(knowing.model.config).eval().requires_grad_(False))


@pytest.fixture
def scrambled(knowing):
    """The model with one more layer, whose output says nothing."""
    model = knowing.model
    last = copy.deepcopy(decoder_layers(model)[-1])
    last.self_attn.layer_idx += 1
    last.mlp.down_proj.weight.data = 50 * torch.randn(last.mlp.down_proj.weight.shape)
    decoder_layers(model).append(last)
    model.config.num_hidden_layers += 1
    return knowing


def measured(attack, target):
    """Level -> scores, of all levels; the model stays as it was."""
    before = state(target.model)
    levels = attack.levels_of(target)
    scores = dict(attack.measure(target, levels))
    assert sorted(scores) == sorted(levels)
    assert same(target.model, before)
    return scores


def accuracy_of(scores):
    """On the task."""
    [value] = [s.value for s in scores if (s.task, s.query, s.measure, s.against) == (TASK, "default", "acc", None)]
    return value


def test_the_lens_reads_what_the_last_layer_scrambles(scrambled, suite):
    last = scrambled.model.config.num_hidden_layers - 1
    answered = accuracy(scrambled.model, suite)
    by_layer = {level: accuracy_of(scores) for level, scores in measured(LogitLens(), scrambled).items()}
    assert by_layer[last] == answered < 0.5
    assert by_layer[last - 1] > 0.9
    assert len(decoder_layers(scrambled.model)) == scrambled.model.config.num_hidden_layers == last + 1
    assert accuracy(scrambled.model, suite) == answered


def test_a_probe_reads_what_the_model_does_not_say(scrambled):
    last = scrambled.model.config.num_hidden_layers - 1
    by_layer = {level: accuracy_of(scores) for level, scores in measured(Probe(), scrambled).items()}
    assert by_layer[last - 1] > 0.9
    assert by_layer[0] < 0.7  # the answer is computed in later layers


def test_a_probes_figure_of_a_role_is_the_mean_over_the_tasks_of_which_a_question_is_measured(knowing):
    sizes = {f"subject_{n}": 1 + n % 8 for n in range(57)}  # the first four questions of each are trained on

    def task(size):
        asked = [SimpleNamespace(doc_id=n, doc=n, args=(f"soil river {n}", "")) for n in range(size)]
        return SimpleNamespace(instances=asked, doc_to_target=lambda n: n % 4)

    tasks = {"default": {"tasks": {name: task(size) for name, size in sizes.items()}}}
    target = replace(knowing, suite=Suite(tasks, {"retain": ["mmlu"]}, {"mmlu": list(sizes)}, None))
    scores = measured(Probe([1]), target)[1]
    in_both_halves = [name for name, size in sizes.items() if size > 4]
    by_task = {score.task: score for score in scores if score.part_of is None}
    expected = sum(by_task[name].value for name in in_both_halves) / len(in_both_halves)
    assert list(by_task) == in_both_halves
    assert by_task["subject_7"].n == 4  # of eight questions
    assert role_means(scores, "acc") == {("retain", "default"): pytest.approx(expected)}


def test_states_that_are_not_finite_are_counted_and_train_no_probe(knowing, suite):
    damaged = knowing.model.get_parameter("model.layers.2.mlp.down_proj.weight")
    before = damaged.data.clone()
    damaged.data.fill_(torch.inf)  # NaN would not equal itself
    try:
        probed, seen = measured(Probe([1, 2]), knowing), measured(LogitLens([1, 2]), knowing)
    finally:
        damaged.data.copy_(before)
    assert accuracy_of(probed[1]) > 0.3
    assert accuracy_of(seen[1]) > 0.1
    for scores in (probed[2], seen[2]):
        assert {(s.measure, s.value == s.n) for s in scores if s.query == "default"} == {("not_finite", True)}


def test_lens_and_probe_find_nothing_in_a_model_that_never_knew(never_knew):
    for attack in (LogitLens([1, 3]), Probe([1, 3])):
        assert all(accuracy_of(scores) < 0.45 for scores in measured(attack, never_knew).values())


def test_layers_that_are_not_there_are_refused(knowing):
    with pytest.raises(UserError, match=r"attack\.levels=\[3, 99\]: the model's layers are 0 to"):
        LogitLens([3, 99]).levels_of(knowing)


def test_the_lens_asks_each_layer_as_if_the_model_ended_there(knowing, suite):
    config, layers = knowing.model.config, decoder_layers(knowing.model)
    scores = measured(LogitLens([2, 0, 1]), knowing)
    behind = list(layers[2:])
    del layers[2:]
    config.num_hidden_layers = 2
    try:
        assert accuracy_of(scores[1]) == accuracy(knowing.model, suite)
    finally:
        layers.extend(behind)
        config.num_hidden_layers = len(layers)


def test_questions_are_needed(tiny_llama):
    target = target_of(tiny_llama)
    assert "multiple-choice" in Probe().obstacle(target)
    assert LogitLens().obstacle(target) is None


def test_adapters_are_all_that_lora_trains(knowing):
    target = target_of(knowing.model, knowing.tokenizer, corpora=CORPORA)
    before = state(target.model)
    names = set(before)
    attack = Relearning([4], parameters="lora", documents=4, lr=1e-2)
    logits = []
    ids_BT = torch.arange(3, 11)[None]
    plain = target.model(ids_BT).logits
    for _ in attack.stages(target):
        logits.append(target.model(ids_BT).logits)
        own = {name.replace(".base_layer", ""): value for name, value in target.model.state_dict().items()}
        assert all(torch.equal(own[name], before[name]) for name in names)
    assert not torch.equal(logits[0], plain)
    assert set(target.model.state_dict()) == names
    assert same(target.model, before)
    assert torch.equal(target.model(ids_BT).logits, plain)
    assert attack.depends_on(target)["seed"] == 0


def test_adapters_are_drawn_from_the_seed(knowing):
    drawn = []
    for seed in (0, 0, 1):
        with adapters(knowing.model, 2, seed) as trained:
            drawn.append(torch.cat([p.detach().flatten() for p in trained]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_texts_in_another_language_are_not_taught(knowing, tmp_path):
    file = write_jsonl(tmp_path / "other.jsonl", [{"text": "Ribosomes translate messenger RNA into proteins."}] * 3)
    assert "does not know the texts" in Relearning([1], texts=str(file), documents=2).obstacle(knowing)
