"""`eval.every`: the course of a training, from weights that are kept until the run is done."""

import json

import pytest
import torch

from tests.conftest import ROOT, read_jsonl, read_metrics
from tests.tracking.wandb_log import records, rows
from unlearn.errors import UserError
from unlearn.experiment import run, run_together
from unlearn.models.delta import load_delta
from unlearn.runs import active, results

HELD_OUT = ROOT / "unlearn/real/data/wikipedia-heldout.jsonl"
JOB = (
    "train.steps=5", "eval=none", "eval.queries=[default,perturbed]", "eval.forget_tokens=[virus]", "method.c=100",
    f"+eval.texts.corpora.retain.wiki={HELD_OUT}", "eval.texts.documents=3", "train.checkpoint_every=1",
)  # fmt: skip
EVERY = ("eval.every=2", "eval.every_documents=3")


@pytest.fixture(scope="module")
def runs(conf, tmp_path_factory):
    """A run without and one with a course, which W&B follows."""
    root = f"output_root={tmp_path_factory.mktemp('course')}"
    plain = run(conf(*JOB, "tracker=none", root))
    return plain, run(conf(*JOB, *EVERY, "tracker=wandb", "tracker.mode=offline", root))


def test_the_course_ends_in_the_result_and_changes_none_of_it(runs):
    plain, measured = runs
    assert plain != measured
    assert "training_from" not in json.loads((measured / "run.json").read_text())
    deltas = [load_delta(folder / "delta.safetensors")[0] for folder in (plain, measured)]
    assert all(torch.equal(deltas[0][name], deltas[1][name]) for name in deltas[0])
    before, after = (read_metrics(folder) for folder in (plain, measured))
    same = [name for name in before if not name.startswith("train/")]
    assert [before[name] for name in same] == [after[name] for name in same]
    course = read_jsonl(measured / "course.jsonl")
    assert [line["step"] for line in course] == [0, 2, 4, 5]
    assert course[0]["retain_text/default/nats"] == after["base/retain_text_wiki/default/nats"]
    assert course[-1]["retain_text/default/nats"] == after["unlearned/retain_text_wiki/default/nats"]
    assert course[-1]["robustness/text_cost"] == after["unlearned/retain_text_wiki/perturbed/default_difference"]
    assert len({line["retain_text/default/nats"] for line in course}) == 4
    assert not (measured / "steps").exists()
    assert not (measured / "partial").exists()


def test_points_of_a_pack_have_the_courses_that_they_have_alone(runs, short, tmp_path):
    points = [(*JOB, *EVERY), (*JOB, *EVERY, "rna.nu=1")]
    alone = [runs[1], run(short(*points[1]))]
    together = run_together([short(*point, f"output_root={tmp_path / 'pack'}") for point in points])
    for single, outcome in zip(alone, together, strict=True):
        assert (single / "course.jsonl").read_bytes() == (outcome.folder / "course.jsonl").read_bytes()


def test_a_run_that_is_interrupted_while_its_course_is_measured_resumes(short, monkeypatch):
    config = short(*JOB, *EVERY)
    measure, asked = results.results_of, []

    def interrupted(runs, evaluator, steps=None):
        asked.append(steps)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(runs, evaluator, steps)

    monkeypatch.setattr(results, "results_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(results, "results_of", measure)
    folder = run(config)
    assert [line["step"] for line in read_jsonl(folder / "course.jsonl")] == [0, 2, 4, 5]
    assert [line["step"] for line in read_jsonl(folder / "train.jsonl")] == list(range(5))


def test_a_few_questions_are_asked_too(short):
    folder = run(short("train.steps=2", "eval=toy", "eval.limit=6", "eval.every=1", "eval.every_questions=4"))
    course = read_jsonl(folder / "course.jsonl")
    assert [line["step"] for line in course] == [0, 1, 2]
    assert course[0]["retain/default/acc"] in {n / 4 for n in range(5)}


def test_nothing_to_measure_is_an_error(short):
    with pytest.raises(UserError, match=r"eval\.every=3: there is nothing to measure"):
        short("eval=toy", "eval.every=3")


def test_wandb_has_the_course_over_its_own_steps(runs):
    [log] = runs[1].glob("wandb/offline-run-*/run-*.wandb")
    logged = [row for row in rows(records(log)) if "course/step" in row]
    assert [row["course/step"] for row in logged] == [0, 2, 4, 5]
    assert all("course/retain_text/perturbed/nats" in row for row in logged)


def test_a_full_disk_costs_a_point_of_the_course_and_no_run(short, monkeypatch, capsys):
    save = active.save_delta

    def full(file, *others):
        if file.name.endswith("000002.safetensors"):
            raise OSError("No space left on device")
        save(file, *others)

    monkeypatch.setattr(active, "save_delta", full)
    folder = run(short(*JOB, *EVERY))
    assert [line["step"] for line in read_jsonl(folder / "course.jsonl")] == [0, 4, 5]
    assert "could not save the weights after step 1: No space left on device" in capsys.readouterr().err
