"""What an interrupted run goes on from: checkpoints, journals, the lock; and what it then sends to W&B."""

import json
import multiprocessing
import signal

import pytest
import torch

from tests.conftest import assert_same_results, read_jsonl, read_metrics, untimed
from tests.runs import victim
from tests.tracking.test_tracker import all_records, of_kind, rows, summary
from unlearn.config.identity import run_folder
from unlearn.errors import UserError
from unlearn.evaluation.journal import Journals
from unlearn.evaluation.scorer import Scorer
from unlearn.experiment import run, run_together
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_up_to
from unlearn.runs import active
from unlearn.runs.folder import RunFolder
from unlearn.storage.files import discard
from unlearn.storage.hold import Lost
from unlearn.storage.lock import FolderLock
from unlearn.training.checkpoint import load_checkpoint, save_checkpoint
from unlearn.training.loop import Record

JOBS = [
    ("method=rmu", "train.schedule=linear", "rna.where=gradient"),
    ("method=rsv", "preset=paper", "model.dtype=float32"),
    ("method=adaptive_rmu", "preset=paper"),
    ("method=dpo", "rna.nu=0.05", "train.recompute=always"),
]


class Killed(BaseException):
    """What a signal raises: no Exception, so that nothing may handle it."""


def interrupted(config, after, monkeypatch):
    """Run until the step `after` has been logged."""
    from unlearn.tracking.tracker import Tracker

    real = Tracker.log_step

    def logged(self, record: Record):
        real(self, record)
        if record.step == after:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "log_step", logged)
        with pytest.raises(Killed):
            run(config)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job[0])
def test_an_interrupted_run_ends_in_the_same_bytes(short, tmp_path, monkeypatch, job):
    job = (*job, "train.steps=7", "train.checkpoint_every=2")
    config = short(*job)
    interrupted(config, 4, monkeypatch)
    folder = run_folder(config)
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert (folder / "checkpoint.safetensors").exists()
    run(config)
    whole = run(short(*job, "train.checkpoint_every=null", f"output_dir={tmp_path / 'whole'}"))
    assert (folder / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()
    lines = [[untimed(line) for line in read_jsonl(f / "train.jsonl")] for f in (folder, whole)]
    assert lines[0] == lines[1]
    assert {f.name for f in folder.iterdir()} == {f.name for f in whole.iterdir()}
    assert len(json.loads((folder / "run.json").read_text())["attempts"]) == 2


@pytest.mark.slow  # alone resumes the points of a pack at different steps
def test_points_that_were_interrupted_at_different_steps_go_on_together(short, tmp_path, monkeypatch):
    jobs = [("seed=0",), ("seed=1",), ("seed=2",)]
    shape = ("train.steps=9", "train.checkpoint_every=3")
    configs = [short(*shape, *job) for job in jobs]
    interrupted(configs[0], 7, monkeypatch)
    interrupted(configs[1], 4, monkeypatch)
    assert all(outcome.error is None for outcome in run_together(configs))
    for job, config in zip(jobs, configs, strict=True):
        whole = run(short(*shape, *job, f"output_dir={tmp_path / str(len(job[0]))}{job[0][-1]}"))
        assert (run_folder(config) / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()
        assert [x["step"] for x in read_jsonl(run_folder(config) / "train.jsonl")] == list(range(9))


@pytest.mark.slow  # alone has a forced run queued again
def test_a_run_that_is_forced_starts_over_and_its_requeued_job_does_not(short, monkeypatch):
    config = short("train.steps=6", "train.checkpoint_every=2", "train.force=true")
    started = []
    real = active.load_checkpoint
    monkeypatch.setattr(active, "load_checkpoint", lambda *a: (real(*a), started.append(a[1].progress.steps)))
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    interrupted(config, 4, monkeypatch)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(config)  # the same job, started again by SLURM
    assert started == [4]
    before = (run_folder(config) / "train.jsonl").stat().st_mtime_ns
    run(config)  # a second command in the same job
    assert (run_folder(config) / "train.jsonl").stat().st_mtime_ns > before
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    monkeypatch.setenv("SLURM_JOB_ID", "6")
    interrupted(config, 4, monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    run(config)
    assert started == [4]


def test_a_changed_text_starts_over(short, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("soil blossom river\n" * 40)
    topic = f"+data.topics.a={{forget: {text}, retain: {text}, max_length: 16}}"
    job = ("data=jsonl", "data.held_out=0", topic, "train.steps=6")
    config = short(*job, "train.checkpoint_every=2")
    interrupted(config, 4, monkeypatch)
    text.write_text("river ruler harbour\n" * 40)
    run(config)
    whole = run(short(*job, f"output_dir={tmp_path / 'whole'}"))
    assert (run_folder(config) / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()


def test_a_broken_checkpoint_is_said_and_not_used(short, monkeypatch, capsys, tmp_path):
    config = short("train.steps=6", "train.checkpoint_every=2")
    interrupted(config, 4, monkeypatch)
    file = run_folder(config) / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    run(config)
    assert "not a readable checkpoint" in capsys.readouterr().err
    whole = run(short("train.steps=6", f"output_dir={tmp_path / 'whole'}"))
    assert (run_folder(config) / "delta.safetensors").read_bytes() == (whole / "delta.safetensors").read_bytes()


def test_a_checkpoint_of_another_model_is_refused(short, tmp_path, monkeypatch):
    config = short("train.steps=6", "train.checkpoint_every=2")
    interrupted(config, 4, monkeypatch)
    source = Source.of(config.model)
    cut = CutModel(load_up_to(source, 4), 4, 3, None)
    from tests.training.test_loop import SETTINGS, objective
    from unlearn.training.variant import make_variant

    variant = make_variant(objective(), cut.frozen, **SETTINGS)
    before = {name: w.clone() for name, w in variant.weights.items()}
    with pytest.raises(UserError, match="a checkpoint of other matrices"):
        load_checkpoint(run_folder(config) / "checkpoint.safetensors", variant)
    assert all(torch.equal(w, before[name]) for name, w in variant.weights.items())


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, tiny_llama, monkeypatch):
    from tests.training.test_loop import SETTINGS, objective
    from unlearn.training.variant import make_variant

    variant = make_variant(objective(), CutModel(tiny_llama, 3).frozen, **SETTINGS)
    file = tmp_path / "checkpoint.safetensors"
    save_checkpoint(file, variant)
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(file, variant)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_lines_are_on_disk_before_what_counts_on_them(short, monkeypatch):
    order = []
    monkeypatch.setattr("unlearn.tracking.tracker.Tracker.sync", lambda _self: order.append("lines"))
    monkeypatch.setattr(active, "save_checkpoint", lambda *_: order.append("checkpoint"))
    monkeypatch.setattr(active, "save_delta", lambda *_: order.append("delta"))
    run(short("train.steps=5", "train.checkpoint_every=2"))
    assert order == ["lines", "checkpoint", "lines", "checkpoint", "lines", "delta"]


def test_an_interrupted_evaluation_does_not_repeat_what_was_scored(short, tmp_path, monkeypatch):
    job = (
        "eval=toy",
        "eval.limit=4",
        "eval.tokens_per_batch=120",
        "eval.maxlogit.tokens=2",
        "eval.maxlogit.roles=[near]",
        "eval.maxlogit.queries=[default]",
    )
    config = short(*job)
    scored, stop = [], 0
    real = Scorer._score

    def score(self, batch, members):
        if len(scored) == stop:
            raise Killed
        found = real(self, batch, members)
        scored.append(len(batch))
        return found

    monkeypatch.setattr(Scorer, "_score", score)
    stop = None
    whole = run(short(*job, f"output_dir={tmp_path / 'whole'}", f"output_root={tmp_path / 'other'}"))
    in_all = len(scored)
    assert in_all > 9
    scored.clear()
    for stop in (3, in_all // 2 + 2, in_all - 1):  # in the unlearned model's, then twice in the base model's # noqa: B007
        with pytest.raises(Killed):
            run(config)
    assert list((run_folder(config) / "partial").iterdir())
    stop = None
    run(config)
    assert len(scored) == in_all  # every batch once
    assert_same_results(run_folder(config), whole)
    metrics = [untimed(read_metrics(f)) for f in (run_folder(config), whole)]
    assert metrics[0] == metrics[1]


def test_a_journal_keeps_whole_lines_of_its_own_plan(tmp_path):
    journals = Journals(tmp_path, "weights")
    with journals.open("a", "plan") as journal:
        journal.add(0, [[-1.5, True]])
        journal.add(1, [[0.1 + 0.2, False]])
    file = tmp_path / "a.jsonl"
    file.write_text(file.read_text() + "[2, [[-3.")
    with journals.open("a", "plan") as journal:
        assert journal.done == {0: [[-1.5, True]], 1: [[0.1 + 0.2, False]]}
        journal.add(2, "x")
    assert journals.open("a", "plan").done[2] == "x"
    file.write_text(file.read_text() + "[3, [[-3." + "[4, 1]\n" + "[5, 2]\n")  # the disk was full for a while
    assert list(journals.open("a", "plan").done) == [0, 1, 2]
    (tmp_path / "b.jsonl").write_text("no journal\n[0, 1]\n")
    assert journals.open("b", "plan").done == {}
    assert journals.open("a", "another plan").done == {}
    assert Journals(tmp_path, "other weights").open("a", "plan").done == {}
    assert Journals(None).open("a", "plan").done == {}


def test_wandb_has_every_step_of_an_interrupted_run_once(short, monkeypatch):
    config = short("tracker=wandb", "train.steps=7", "train.checkpoint_every=2")
    interrupted(config, 4, monkeypatch)  # the checkpoint is after step 3: step 4 is computed again
    [first] = all_records(run_folder(config))
    run(config)
    [sent_records] = all_records(run_folder(config))
    assert of_kind(sent_records, "run")[0].run_id == of_kind(first, "run")[0].run_id
    sent = [row for row in rows(sent_records) if "train/step" in row]
    lines = read_jsonl(run_folder(config) / "train.jsonl")
    assert [row["train/step"] for row in sent] == list(range(7))
    own = [{k.removeprefix("train/"): v for k, v in row.items() if not k.startswith("_")} for row in sent]
    assert [untimed(row) for row in own] == [untimed(line) for line in lines]
    assert lines[0]["retain_loss"] < min(line["retain_loss"] for line in lines[1:])
    assert summary(sent_records)["train/retain_loss"]["min"] == lines[0]["retain_loss"]  # of the other attempt


@pytest.mark.slow  # alone kills a run that W&B follows
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_wandb_misses_no_step_of_a_run_that_was_killed(short, late, monkeypatch):
    """SIGKILL at the fifth step's line: before it is written, and after it was sent."""
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # W&B's process of this one, which would outlive the killed one
    config = short("tracker=wandb", "train.steps=7", "train.checkpoint_every=2", "eval=toy", "eval.limit=2")
    process = multiprocessing.get_context("spawn").Process(target=victim.run, args=([config], "training", 5, late))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run(config)
    [sent_records] = all_records(run_folder(config))
    assert [row["train/step"] for row in rows(sent_records) if "train/step" in row] == list(range(7))
    for key in ("retain/default/acc", "evaluation/nrows", "questions/nrows"):
        assert sum(key in row for row in rows(sent_records)) == 1


# --- The lock


@pytest.mark.slow  # alone takes one folder of a pack away in each stage
@pytest.mark.parametrize("phase", ["training", "scoring unlearned", "scoring base"])
def test_one_folder_that_is_lost_does_not_end_the_others(short, phase, monkeypatch):
    job = ("train.steps=6", "eval=toy", "eval.limit=2", "eval.tokens_per_batch=300")
    configs = [short(*job, f"seed={seed}") for seed in range(2)]
    real = FolderLock.report

    def report(self, progress):
        if self.folder == run_folder(configs[0]) and progress.name == phase and progress.done >= 3:
            discard(self.place)
        real(self, progress)

    monkeypatch.setattr(FolderLock, "report", report)
    first, second = run_together(configs)
    assert isinstance(first.error, Lost)
    assert second.error is None
    status = [RunFolder(outcome.folder).record["status"] for outcome in (first, second)]
    assert status == ["running", "done"]  # nothing is written in another's folder
