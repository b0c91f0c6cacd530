"""Weights & Biases, offline: what is in the transaction log is what `wandb sync` sends, and it is all read back."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
import wandb
import wandb_workspaces.reports.v2 as wr

from tests.conftest import ROOT, read_jsonl, read_metrics
from tests.tracking import wandb_log
from unlearn.config.identity import run_folder
from unlearn.errors import UserError
from unlearn.experiment import run, run_together
from unlearn.records.samples import read_samples
from unlearn.runs.folder import RunFolder
from unlearn.tracking import dashboard
from unlearn.tracking.tracker import Tracker
from unlearn.tracking.wandb_run import question_tables, start_wandb
from unlearn.tracking.wandb_tables import SUMMARIES

QUIET = {
    "project": "unlearn", "entity": None, "mode": "auto", "group": None, "job_type": "rmu", "tags": [], "timeout_s": 1,
    "config": {},
}  # fmt: skip
ASKED = ("eval=toy", "eval.limit=6", "eval.maxlogit={roles: [retain, near], queries: [perturbed], tokens: 3}")
HELD_OUT = ROOT / "unlearn/real/data/wikipedia-heldout.jsonl"
TEXTS = (
    f"+eval.texts.corpora.retain.wiki={HELD_OUT}", f"+eval.texts.corpora.forget.wiki={HELD_OUT}",
    "eval.texts.documents=2", "eval.every=2",
)  # fmt: skip
ROLES = {
    "retain": ["toy_retain"],
    "near": ["toy_near_bio", "toy_near_cyber"],
    "forget": ["toy_forget_bio", "toy_forget_cyber"],
}


def records(folder):
    """Everything in the one offline run of a folder."""
    [found] = all_records(folder)
    return found


def all_records(folder):
    """Those of every offline run of a folder, in order."""
    return [list(wandb_log.records(file)) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def of_kind(found, kind):
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def rows(found):
    return list(wandb_log.rows(found))


def summary(found):
    """The summary that the records add up to."""
    updates = [update for record in of_kind(found, "summary") for update in record.update]
    return {"/".join(u.nested_key) or u.key: json.loads(u.value_json) for u in updates}


def row_with(found, name):
    [row] = [row for row in rows(found) if name in row]
    return row


def table(folder, found, key):
    """The table of a key: its file, and the file that its artifact would send, which hold the same."""
    row = {name.removeprefix(f"{key}/"): value for name, value in row_with(found, f"{key}/nrows").items()}
    [media] = folder.glob(f"wandb/offline-run-*/files/{row['path']}")
    [artifact] = [a for a in of_kind(found, "artifact") if a.name.endswith(f"-{key}")]
    assert artifact.type == "run_table"
    [staged] = artifact.manifest.contents
    content = json.loads(Path(staged.local_path).read_text())
    assert Path(staged.local_path).stat().st_size == staged.size
    assert row["nrows"] == len(content["data"])
    assert json.loads(media.read_text()) == {name: content[name] for name in ("columns", "data")}
    return [dict(zip(content["columns"], line, strict=True)) for line in content["data"]]


@pytest.fixture(scope="module")
def whole(conf, tmp_path_factory):
    """A run with everything: its folder, its files' metrics, its W&B records."""
    config = conf(
        "method=adaptive_rmu", "train.steps=3", "tracker.tags=[a]", "tracker.group=g", "tracker.delta=true", *ASKED,
        *TEXTS, f"output_root={tmp_path_factory.mktemp('whole')}",
    )  # fmt: skip
    folder = run(config)
    metrics = read_metrics(folder)
    return SimpleNamespace(config=config, folder=folder, metrics=metrics, found=records(folder))


def test_every_line_of_train_jsonl_is_a_row(whole):
    sent = [row for row in rows(whole.found) if "train/step" in row]
    lines = read_jsonl(whole.folder / "train.jsonl")
    own = [{k.removeprefix("train/"): v for k, v in row.items() if not k.startswith("_")} for row in sent]
    assert own == lines
    assert len(lines) == 3
    assert {"memory_mb", "tokens_per_second", "gradient_norm", "forget_cosine", "retain_drift"} < lines[0].keys()


def test_every_metric_is_in_a_row_and_in_the_summary(whole):
    evaluated = {k: v for k, v in whole.metrics.items() if not k.startswith("train/")}
    row = row_with(whole.found, "retain/perturbed/acc")
    end = summary(whole.found)
    for part in ({k: row[k] for k in row if not k.startswith("_")}, end):
        assert {k: part[k] for k in evaluated} == evaluated
    curves = {f"train/{name}" for name in SUMMARIES}
    others = {k: v for k, v in whole.metrics.items() if k.startswith("train/") and k not in curves}
    assert {k: end[k] for k in others} == others
    assert {"train/seconds", "train/steps", "train/peak_memory_mb"} == others.keys()
    roles = row.keys() - evaluated.keys() - {"_step", "_runtime", "_timestamp"}
    assert {k: end[k] for k in roles} == {k: row[k] for k in roles}
    assert {"robustness/drop", "base/near/perturbed/maxlogit_mean", "base/forget_text/default/nats"} < roles


def test_roles_have_means_whatever_the_tasks_are(whole):
    row, metrics = row_with(whole.found, "retain/perturbed/acc"), whole.metrics
    for role, tasks in ROLES.items():
        for query in ("default", "perturbed"):
            for model, prefix in (("unlearned", ""), ("base", "base/")):
                mean = sum(metrics[f"{model}/{task}/{query}/acc"] for task in tasks) / len(tasks)
                assert row[f"{prefix}{role}/{query}/acc"] == pytest.approx(mean)
    near = [metrics[f"unlearned/{task}/perturbed/maxlogit_mean"] for task in ROLES["near"]]
    assert row["near/perturbed/maxlogit_mean"] == pytest.approx(sum(near) / 2)
    retain = "unlearned/toy_retain"
    assert row["robustness/drop"] == metrics[f"{retain}/default/acc"] - metrics[f"{retain}/perturbed/acc"]
    assert "forget/perturbed/maxlogit_mean" not in row


def test_metrics_are_defined(whole):
    found = {m.name or m.glob_name: m for m in of_kind(whole.found, "metric")}
    of_training = {name: metric for name, metric in found.items() if not name.startswith("course/")}
    assert found.keys() - of_training.keys() == {"course/step", "course/*"}
    assert of_training.keys() == {"train/step", "train/*", *(f"train/{name}" for name in SUMMARIES)}
    assert {m.step_metric for name, m in of_training.items() if name != "train/step"} == {"train/step"}
    kinds = ("min", "max", "mean", "last")
    for name, kept in {
        "loss": "min,last", "forget_loss": "min,last", "retain_loss": "min,last", "forget_cosine": "max,last",
        "gradient_norm": "max", "tokens_per_second": "mean", "memory_mb": "max",
    }.items():  # fmt: skip
        assert {kind for kind in kinds if getattr(found[f"train/{name}"].summary, kind)} == set(kept.split(","))


def test_curves_have_their_summaries(whole):
    lines, end = read_jsonl(whole.folder / "train.jsonl"), summary(whole.found)
    compute = {"min": min, "max": max, "mean": fmean, "last": lambda values: values[-1]}
    for name, kept in SUMMARIES.items():
        values = [line[name] for line in lines]
        assert end[f"train/{name}"] == {kind: pytest.approx(compute[kind](values)) for kind in kept.split(",")}
    assert end["train/forget_norm"] == lines[-1]["forget_norm"]


def test_the_table_of_accuracies(whole):
    found = {(r["role"], r["task"], r["query"], r["model"]): r for r in table(whole.folder, whole.found, "evaluation")}
    wanted = {
        (role, task, query, model)
        for role, tasks in ROLES.items()
        for task in tasks
        for query in ("default", "perturbed")
        for model in ("base", "unlearned")
    }
    assert found.keys() == wanted
    for (_, task, query, model), row in found.items():
        names = {"acc": "acc", "stderr": "acc_stderr"}
        names |= {f"{o}_{x}": f"{o}_{x}" for o in ("base", "default") for x in ("difference", "low", "high", "p")}
        for column, metric in names.items():
            assert row[column] == whole.metrics.get(f"{model}/{task}/{query}/{metric}")
    assert found["retain", "toy_retain", "perturbed", "unlearned"]["base_p"] is not None
    assert found["retain", "toy_retain", "perturbed", "base"]["default_p"] is not None


def test_the_table_of_questions(whole):
    found = {(r["task"], r["query"], r["question"]): r for r in table(whole.folder, whole.found, "questions")}
    assert len(found) == 5 * 2 * 6
    samples = read_samples(whole.folder)
    for (task, query, question), row in found.items():
        for model in ("base", "unlearned"):
            [sample] = [s for s in samples if (s.model, s.task, s.query, s.id) == (model, task, query, question)]
            second, first = sorted(sample.loglikelihoods)[-2:]
            assert row[f"{model} margin"] == first - second
            assert row[f"{model} choice"] == sample.choice
            assert row[f"{model} correct"] == sample.correct


def test_more_questions_than_a_table_holds_are_several_tables(monkeypatch):
    monkeypatch.setattr(wandb.Table, "MAX_ARTIFACT_ROWS", 4)
    lines = [["retain", "t", "default", i, True, False, 0, 1, 0.5, 0.25] for i in range(9)]
    found = question_tables(lines)
    assert list(found) == ["questions", "questions-2", "questions-3"]
    assert [line for part in found.values() for line in part.data] == lines
    assert question_tables([]) == {}


def test_more_questions_than_a_media_file_holds_are_whole_in_the_artifact(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb.Table, "MAX_ROWS", 8)
    started = start_wandb(tmp_path, run_id="abc", name="n", **QUIET)
    lines = [["retain", "t", "default", i, True, False, 0, 1, 0.5, 0.25] for i in range(wandb.Table.MAX_ROWS + 1)]
    started.log(question_tables(lines))
    started.finish()
    [artifact] = of_kind(records(tmp_path), "artifact")
    assert json.loads(Path(artifact.manifest.contents[0].local_path).read_text())["data"] == lines


def test_histograms_of_max_logit(whole):
    row = row_with(whole.found, "maxlogit/base/toy_retain/perturbed/_type")

    def values(model, task):
        asked = [s for s in samples if (s.model, s.task, s.query) == (model, task, "perturbed")]
        return np.array([value for sample in asked for value in sample.maxlogits])

    samples = read_samples(whole.folder)

    parts = {task: [task] for task in (*ROLES["retain"], *ROLES["near"])} | {r: ROLES[r] for r in ("retain", "near")}
    assert {k.rsplit("/", 1)[0] for k in row if k.startswith("maxlogit/")} == {
        f"maxlogit/{model}/{name}/perturbed" for model in ("base", "unlearned") for name in parts
    }
    for model in ("base", "unlearned"):
        for name, tasks in parts.items():
            counts, edges = np.histogram(np.concatenate([values(model, task) for task in tasks]), bins=64)
            key = f"maxlogit/{model}/{name}/perturbed"
            assert row[f"{key}/values"] == counts.tolist()
            assert row[f"{key}/bins"] == pytest.approx(edges.tolist())
            assert sum(row[f"{key}/values"]) == 6 * 3 * len(tasks)


def test_the_delta_is_an_artifact(whole):
    [artifact] = [a for a in of_kind(whole.found, "artifact") if a.type == "delta"]
    metadata = json.loads(artifact.metadata)
    record = RunFolder(whole.folder).record
    content = (whole.folder / "delta.safetensors").read_bytes()
    assert metadata == {
        "config": record["config"],
        "code": record["code"],
        "layer": whole.config.model.layer,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    [staged] = artifact.manifest.contents
    assert staged.path == "delta.safetensors"
    assert staged.size == len(content)
    assert Path(staged.local_path) == whole.folder / "delta.safetensors"  # no copy of it


def test_name_config_group_tags_and_end(whole):
    [started] = of_kind(whole.found, "run")[:1]
    assert started.display_name == whole.folder.name
    assert list(started.tags) == ["a", "toy", "rna"]
    assert (started.run_group, started.job_type) == ("g", "adaptive_rmu")
    stored = {update.key: json.loads(update.value_json) for update in started.config.update}
    stored.pop("_wandb")
    assert stored == RunFolder(whole.folder).record["config"]
    assert [e.exit_code for e in of_kind(whole.found, "exit")] == [0]


@pytest.mark.slow  # alone follows a sweep's group and tags from Hydra to W&B
def test_a_sweep_is_a_group(tmp_path):
    command = [
        sys.executable, "launch.py", "-m", "sweep=noise_scale", "method=rmu", "model.grids.nu='0.01,0'",
        "train.steps=1", "eval=none", "hydra/launcher=packed", f"output_root={tmp_path}",
    ]  # fmt: skip
    for extra in ([], ["tracker.group=mine", "tracker.tags=[x]", "seed=1"]):
        subprocess.run([*command, *extra], cwd=ROOT, check=True, capture_output=True)
    found = [of_kind(records(folder), "run")[0] for folder in tmp_path.glob("runs/*")]
    sweeps = sorted("noise_scale " + " ".join(f.parts[-2:]) for f in tmp_path.glob("sweeps/*/*"))
    jobs = len(found) // 2
    assert sorted({run.run_group for run in found}) == ["mine", sweeps[0]]
    assert sum(run.run_group == "mine" for run in found) == jobs
    assert {run.job_type for run in found} == {f.name.split("-")[0] for f in tmp_path.glob("runs/*")}
    for run_ in found:
        mine = ["x"] if run_.run_group == "mine" else []
        [folder] = tmp_path.glob(f"runs/{run_.display_name}")
        rna = "rna" if RunFolder(folder).record["config"]["rna"]["nu"] else "no-rna"
        assert sorted(run_.tags) == sorted([*mine, "noise_scale", "toy", rna])
    [first, _] = sorted(tmp_path.glob("sweeps/*/*"))
    for file in first.glob("*/config.json"):  # which a job on SLURM reads
        assert json.loads(file.read_text())["tracker"]["group"] == sweeps[0]


def test_a_failed_run_is_finished_as_failed(short):
    config = short("tracker=wandb", "method.c=1e30")
    with pytest.raises(UserError):
        run(config)
    assert [e.exit_code for e in of_kind(records(run_folder(config)), "exit")] == [1]
    assert wandb.run is None


def test_what_wandb_does_not_take_is_said_and_the_run_is_done(short, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wandb, "Table", full)
    folder = run(short("tracker=wandb", "tracker.questions=false", *ASKED[:2]))
    assert RunFolder(folder).done
    said = capsys.readouterr().err
    assert said.count("W&B did not accept") == 1  # nor is there a table of questions
    assert "W&B did not accept the table of accuracies (OSError: [Errno 28] No space left on device)" in said
    assert [e.exit_code for e in of_kind(records(folder), "exit")] == [0]
    assert "retain/default/acc" in summary(records(folder))


WITHOUT_WANDB = """
import runpy
import psutil
from unlearn.tracking.tracker import Tracker

def log_step(self, record, real=Tracker.log_step):
    if record.step == 1:
        for process in psutil.Process().children():
            if process.name().startswith("wandb"):
                process.kill()
                process.wait()
                print("killed")
    real(self, record)

Tracker.log_step = log_step
runpy.run_path("launch.py", run_name="__main__")
"""


@pytest.mark.slow  # alone kills W&B's process during a training
def test_a_run_survives_the_death_of_wandb(tmp_path):
    """W&B's process is killed before the second of three steps."""
    arguments = ["train.steps=3", "tracker.delta=true", *ASKED, f"output_root={tmp_path}"]
    env = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_WANDB, *arguments],
        cwd=ROOT, env=env | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "killed\n"
    [folder] = tmp_path.glob("runs/*")
    assert RunFolder(folder).done
    assert len(read_jsonl(folder / "train.jsonl")) == 3
    assert "unlearned/toy_retain/perturbed/acc" in read_metrics(folder)
    # A step (once of two), metrics, two tables, histograms, the delta, the end.
    assert done.stderr.count("W&B did not accept") == 7


def test_a_wandb_that_does_not_start_ends_no_run_unless_it_was_asked_for(short, monkeypatch, capsys):
    def dead(*_, **__):
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(wandb, "init", dead)
    assert RunFolder(run(short("tracker=wandb"))).done
    assert "cannot start a W&B run (ConnectionResetError: Connection lost). The run" in capsys.readouterr().err
    asked_for = short("tracker=wandb", "tracker.mode=online", "tracker.entity=nope", "seed=1")
    with pytest.raises(
        UserError, match=r"tracker\.mode=online, project=unlearn, entity=nope: cannot start a W&B run \(C"
    ):
        run(asked_for)
    assert not (run_folder(asked_for) / "train.jsonl").exists()  # before anything is trained


def test_files_are_whole_before_wandb_is_told(short, monkeypatch):
    seen = []
    monkeypatch.setattr(
        Tracker, "log_scores", lambda self, *_: seen.append(RunFolder(self._file.parent).record["status"])
    )
    run(short("tracker=wandb"))
    assert seen == ["done"]


def test_runs_do_not_bleed_into_each_other(short):
    outcomes = run_together([short("tracker=wandb", f"rna.nu={nu}") for nu in (0.01, 0.09)])
    folders = [outcome.folder for outcome in outcomes]
    ids = {of_kind(records(folder), "run")[0].run_id for folder in folders}
    assert len(ids) == 2
    for folder in folders:
        assert sum("train/loss" in row for row in rows(records(folder))) == 3
        assert of_kind(records(folder), "artifact") == []  # tracker.delta is off


def test_the_steps_that_the_server_has_are_not_sent_again(tmp_path):
    """A mock of a run that W&B's server has resumed."""
    sent = []
    resumed = SimpleNamespace(
        id="abc", resumed=True, summary={"train/step": 1}, log=lambda row: sent.append(row["train/step"]),
    )  # fmt: skip
    (tmp_path / "train.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3')
    Tracker(tmp_path, resumed)
    assert sent == [2]


def test_logged_in_but_out_of_reach_goes_offline_without_a_question(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    wandb.teardown()
    try:
        started = start_wandb(tmp_path, run_id="abc", name="n", **QUIET)
        assert started.settings.mode == "offline"
        started.finish()
    finally:
        wandb.teardown()
    written = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert b"x" * 40 not in written  # the key is in no file


@pytest.mark.slow  # alone looks for secrets in every file of a run
def test_no_secret_is_in_any_file_or_on_the_screen(tmp_path):
    secrets = {"WANDB_API_KEY": "f00d" * 10, "HF_TOKEN": "hf_" + "s3cr" * 8, "AWS_SECRET_ACCESS_KEY": "q9Zk" * 10}
    command = [
        sys.executable, "launch.py", "train.steps=2", "tracker.delta=true", *ASKED, f"output_root={tmp_path / 'out'}",
    ]  # fmt: skip
    own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # W&B's process of this one
    env = {**own, **secrets, "WANDB_DATA_DIR": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    files = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    assert {"metrics.json", "config.yaml", "debug-internal.log", "delta.safetensors"} < {f.name for f in files}
    assert any(f.suffix == ".wandb" for f in files)
    for secret in map(str.encode, secrets.values()):
        assert [f for f, content in files.items() if secret in content] == []
        assert secret not in done.stdout + done.stderr


def test_a_line_without_room_on_the_disk_does_not_fail_again_on_closing(tmp_path):
    tracker = Tracker(tmp_path)
    tracker._lines.close()
    tracker._lines = open("/dev/full", "a")  # noqa: SIM115
    tracker._lines.write("a line")
    with pytest.raises(OSError, match="No space left"):
        tracker._lines.flush()
    tracker.close(failed=True)


def names_of(panel):
    """The summary's figures, the configuration's keys and the rows' names that a panel shows."""
    if isinstance(panel, wr.ScatterPlot):
        shown = [panel.x, panel.y]
    elif isinstance(panel, wr.ParallelCoordinatesPlot):
        shown = [column.metric for column in panel.columns]
    elif isinstance(panel, wr.MediaBrowser):
        shown = [wr.Metric(f"{key}/values") for key in panel.media_keys]
    elif isinstance(panel, wr.WeavePanelSummaryTable):
        shown = [wr.Metric(f"{panel.table_name}/nrows")]
    else:
        shown = [wr.Metric(panel.x), *(wr.Metric(name) for name in panel.y), panel.groupby]
    return shown


def test_the_dashboard_shows_what_a_run_logs(whole):
    config, found = whole.config, whole.found
    logged = {name for row in rows(found) for name in row}
    keys = {f"{group}.{key}" for group in ("rna", "method") for key in asdict(config)[group]} | {"seed", "method.c"}
    made = dashboard.workspace("p", "e")
    shown = [name for section in made.sections for panel in section.panels for name in names_of(panel)]
    assert len(shown) > 30
    for name in shown:
        place = (
            keys if isinstance(name, wr.Config) else summary(found) if isinstance(name, wr.SummaryMetric) else logged
        )
        assert name.name in place
    for column in made.runset_settings.pinned_columns[1:]:
        kind, name = column.split(":")
        assert name in (keys if kind == "config" else summary(found))
    curves = {line for line in logged if line.startswith("train/")} - {"train/step", "train/topic"}
    [training] = [section for section in made.sections if section.name == "Training"]
    assert {panel.y[0] for panel in training.panels} == curves  # all of them
