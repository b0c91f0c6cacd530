"""Log-likelihoods and logits that are NaN or infinite: counted in every kind of task, never an answer."""

import json
import math
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT, metrics_of, write_jsonl
from tests.evaluation.test_output_types import WAYS, write_task
from unlearn.cli.main import main
from unlearn.config.schema import TextConfig
from unlearn.errors import UserError
from unlearn.evaluation.harness import MaxLogitPlan, against_base, evaluate
from unlearn.evaluation.journal import Journals
from unlearn.evaluation.questions import check_token_ids
from unlearn.evaluation.suite import load_suite
from unlearn.evaluation.texts import load_passages
from unlearn.experiment import run, run_together
from unlearn.models.delta import METADATA
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.records.names import text_tasks
from unlearn.tracking.wandb_tables import TEXTS, evaluation_rows, question_rows, role_figures, text_rows

SOURCE = Source(str(ROOT / "unlearn/toy/model"))
WORD = "harbour"  # a text with it has embeddings that are NaN
QUESTIONS = [{"question": f"{word} of the river", "answer": "soil"} for word in ("stone", WORD, "water")]
CORPORA = {"retain": {"own": [f"{WORD if i == 1 else 'water'} {'the river of the soil ' * 6}" for i in range(3)]}}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SOURCE)


@pytest.fixture(scope="module")
def models(tokenizer):
    """A sound model, and one that has NaN for one word."""
    broken = load_whole(SOURCE)
    weight = broken.get_input_embeddings().weight
    broken.get_output_embeddings().weight = torch.nn.Parameter(weight.clone(), requires_grad=False)  # not tied
    weight.data[tokenizer(f" {WORD}", add_special_tokens=False)["input_ids"]] = math.nan
    return load_whole(SOURCE), broken


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A task of each type of lm-eval, one of them in a group, and texts. One question of three has the word."""
    folder = tmp_path_factory.mktemp("tasks")
    write_jsonl(folder / "rows.jsonl", QUESTIONS)
    more = {"multiple_choice": 'doc_to_choice: ["soil", "sea"]\nmetric_list: [{metric: acc}]', **WAYS}
    for kind, settings in more.items():
        write_task(folder / "rows.jsonl", kind, settings, asked="{{question}}", target="{{answer}}")
    (folder / "group.yaml").write_text(
        "group: x_group\ntask: [x_multiple_choice]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    names = ["x_group", *(f"x_{kind}" for kind in WAYS)]
    passages = load_passages(TextConfig(place="start"), {"default": []}, corpora=CORPORA)
    texts = {"passages": passages, "text_roles": text_tasks(CORPORA)}
    return load_suite({"retain": names}, {"default": []}, include_path=str(folder), **texts)


@pytest.fixture(scope="module")
def answers(models, suite, tokenizer):
    sound, broken = (
        evaluate(ModelGroup(model), tokenizer, suite, label=label, tokens_per_batch=600)[0]
        for model, label in zip(models, ("base", "unlearned"), strict=True)
    )
    return sound, broken


def test_each_kind_of_task_counts_what_is_not_finite_and_has_no_figure(answers):
    figures = metrics_of(answers[1])
    tasks = ["x_group", "x_multiple_choice", *(f"x_{kind}" for kind in WAYS), "retain_text_own"]
    assert {name: value for name, value in figures.items() if name.endswith("not_finite")} == {
        f"unlearned/{task}/default/not_finite": 1.0 for task in tasks
    }
    assert len(figures) == len(tasks)
    assert not any("not_finite" in name for name in metrics_of(answers[0]))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_question_without_a_finite_answer_is_neither_right_nor_wrong(answers):
    _, broken = answers
    for sample in broken.samples:
        is_broken = sample.id == 1
        assert (sample.value is None) == (is_broken or sample.task == "x_loglikelihood_rolling")
        if sample.task == "x_multiple_choice":
            assert (sample.choice is None) == is_broken


def test_what_has_no_figure_is_not_compared(answers, suite):
    sound, broken = answers
    assert against_base(sound, broken, suite) == []
    assert len(against_base(sound, sound, suite)) == 5  # all but the perplexity


def test_what_was_generated_before_an_interruption_is_counted_too(models, suite, tokenizer, tmp_path, monkeypatch):
    def ask():
        [own] = evaluate(
            ModelGroup(models[1]), tokenizer, suite, label="x", tokens_per_batch=600, journals=[Journals(tmp_path)]
        )
        return own

    first = ask()
    monkeypatch.setattr("unlearn.evaluation.scorer.Scorer._generated", None)
    monkeypatch.setattr("unlearn.evaluation.scorer.Scorer._score", None)
    assert ask().scores == first.scores


def test_maxlogits_that_are_not_finite_are_counted(models, suite, tokenizer):
    plan = MaxLogitPlan(["retain"], ["default"], 2)
    [own] = evaluate(ModelGroup(models[1]), tokenizer, suite, label="x", tokens_per_batch=600, maxlogit=plan)
    figures = metrics_of(own)
    assert figures["x/x_multiple_choice/default/maxlogit_not_finite"] == 1
    assert "x/x_multiple_choice/default/maxlogit_mean" not in figures


def test_tables_of_wandb_have_rows_for_what_has_no_figure(answers):
    sound, broken = answers
    rows = evaluation_rows(sound.scores + broken.scores)
    counts = {(row[3], row[1]): (row[4], row[-1]) for row in rows}
    assert counts["base", "x_group"] == (1.0, 0)
    assert counts["unlearned", "x_group"] == (None, 1)
    [base, unlearned] = text_rows(sound.scores + broken.scores)
    assert len(base) == len(unlearned) == len(TEXTS)
    assert (unlearned[4], unlearned[-1]) == (None, 1)
    figures = role_figures(broken.scores)
    assert figures == {"retain/default/not_finite": 4.0, "retain_text/default/not_finite": 1.0}
    questions = list(question_rows(sound.samples + broken.samples))
    assert [row[-1] for row in questions if row[1] == "x_multiple_choice"][1] is None


def test_a_sound_model_is_asked_in_tokens_that_it_has_and_padded_with_one(models, suite, tokenizer):
    """[PAD] is often added to a tokenizer, and has no embedding."""
    larger = load_tokenizer(SOURCE)
    larger.add_special_tokens({"pad_token": "[ADDED]"})
    own, other = (
        evaluate(ModelGroup(models[0]), t, suite, label="x", tokens_per_batch=2000)[0] for t in (tokenizer, larger)
    )
    assert other == own
    check_token_ids(suite, larger, 832)
    larger.add_tokens([WORD[:3]])
    with pytest.raises(UserError, match=r"eval\.tasks: x_\w+, default: token id 833, but the model has embeddings for"):
        check_token_ids(suite, larger, 832)


def test_a_delta_of_nan_is_no_perfect_forgetting(short, capsys):
    folder = run(short("eval=toy", "eval.limit=2", "eval.queries=[default]"))
    delta = folder / "delta.safetensors"
    weights = load_file(delta)
    name = next(name for name in weights if name.endswith("weight"))
    with safe_open(delta, framework="pt") as stored:
        metadata = stored.metadata()
    assert METADATA in metadata
    save_file(weights | {name: torch.full_like(weights[name], math.nan)}, delta, metadata)
    capsys.readouterr()
    with pytest.raises(SystemExit, match=r"unlearned model, toy_retain, default: 2 of 2 not finite") as stop:
        main(["evaluate", str(folder), "eval.limit=2", "eval.queries=[default]"])
    assert "\n" not in str(stop.value)
    shown = capsys.readouterr().err
    assert f"{name} has values that are not finite" in shown
    row = next(line for line in shown.splitlines() if "toy_forget_bio" in line and "default" in line)
    assert "2 of 2 not finite" in row
    [metrics] = folder.glob("evaluations/*/metrics.json")
    json.loads(metrics.read_text(), parse_constant=pytest.fail)


def test_a_run_of_a_broken_model_is_done_and_ends_with_status_1(short, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(SOURCE.path, model)
    weights = load_file(model / "model.safetensors")
    last = max(name for name in weights if "down_proj" in name)
    save_file(weights | {last: torch.full_like(weights[last], math.inf)}, model / "model.safetensors", {"format": "pt"})
    config = short(f"model.path={model}", "eval=toy", "eval.limit=2", "eval.queries=[default]")
    for said in ("answers are not finite", "finished: nothing to do"):
        [outcome] = run_together([config])
        assert "base model, toy_retain, default: 2 of 2 not finite" in str(outcome.error)
        assert json.loads((outcome.folder / "run.json").read_text())["status"] == "done"
        assert said in capsys.readouterr().err
