"""Folders of strangers, damaged and hostile: each command answers with a sentence or leaves a run out by name.

Nothing outside of the folder is changed, no code of it runs, and no secret gets into a file or a message.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.cli.stranger import OTHER, RUN, SECRET, SWEEP, changes, strangers_folder
from unlearn.cli.main import main
from unlearn.config.recorded import PACKAGE
from unlearn.errors import UserError
from unlearn.runs.evaluation import run_config
from unlearn.runs.folder import RunFolder
from unlearn.sweeps.sweep import Sweep


@pytest.fixture(scope="module")
def made(conf, tmp_path_factory):
    """A stranger's folder, of which each example gets a copy."""
    top = tmp_path_factory.mktemp("made")
    strangers_folder(top / "in", conf("eval=toy", "tracker=none", f"output_root={top / 'in'}"))
    return top / "in"


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A function that makes a copy of the folder, and `outside` beside it, which nobody may change."""
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.chdir(tmp_path)

    def copy():
        for name in ("in", "outside", "out"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(made, tmp_path / "in")
        (tmp_path / "outside/folder").mkdir(parents=True)
        (tmp_path / "outside/file").write_text(SECRET)
        (tmp_path / "outside/tasks").mkdir()
        for file in (f for f in (tmp_path / "in").rglob("*.json")):
            text = file.read_text().replace(str(made), str(tmp_path / "in"))
            file.write_text(text.replace("/OUTSIDE", str(tmp_path / "outside")))
        return tmp_path / "in"

    return copy


@pytest.fixture
def nothing_loaded(monkeypatch):
    """Commands stop where they would load a model, or train."""

    def stop(*_args, **_how):
        raise UserError("stopped before anything is loaded")

    for room in ("runs.evaluation", "attacks.run", "paper.theory.finished_run"):
        monkeypatch.setattr(f"unlearn.{room}.load_evaluation_inputs", stop)
    monkeypatch.setattr("unlearn.paper.theory.finished_run.check_memory", stop)
    monkeypatch.setattr("unlearn.models.export.load_tokenizer", stop)
    monkeypatch.setattr("unlearn.sweeps.worker.run_packed", stop)


def files_of(folder):
    return {file: file.is_file() and file.read_bytes() for file in folder.rglob("*")}


def answer(arguments, capsys):
    """What a command prints and ends with. Any error but a sentence is raised."""
    try:
        main([str(argument) for argument in arguments])
        ended = ""
    except SystemExit as stop:
        ended = str(stop.code)
    printed = capsys.readouterr()
    return ended + printed.out + printed.err


def check(top, commands, capsys):
    """Run these commands on a folder, and look at all that they leave."""
    before = files_of(top.parent / "outside")
    for arguments in commands:
        told = answer(arguments, capsys)
        assert SECRET not in told, arguments
        assert files_of(top.parent / "outside") == before, arguments
    for file in [*top.rglob("*"), *top.parent.glob("out/*")]:
        assert file.is_symlink() or not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def quick_commands(top):
    return [
        ["compare", top / RUN, top / OTHER],
        ["status", top / SWEEP, "--once"],
        ["evaluate", top / RUN, "eval.include_path=null"],
        ["export", top / RUN, top.parent / "out/exported"],
    ]


def report(top):
    return ["report", top, "--format", "csv", "--table", "runs", "-o", top.parent / "out/runs.csv"]


def other_commands(top):
    return [
        ["status", top / SWEEP, "--once", "--retry"],
        ["attack", top / RUN, "attack=pruning"],
        ["theory", top / RUN],
    ]


def pages(top):
    return [["claims", top, "-o", top.parent / "out/claims.md"], ["report", top, "-o", top.parent / "out/r.html"]]


short = settings(
    deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@given(change=changes())
@settings(short, max_examples=10)
def test_a_command_on_a_run_or_a_sweep_answers_with_a_sentence(change, place, nothing_loaded, capsys):
    top = place()
    change(top, top.parent / "outside")
    check(top, quick_commands(top), capsys)


@given(change=changes())
@settings(short, max_examples=2)
def test_a_report_leaves_out_what_is_damaged(change, place, capsys):
    top = place()
    change(top, top.parent / "outside")
    check(top, [report(top)], capsys)


@pytest.mark.slow  # alone tries many changes, and all commands
@given(change=changes())
@settings(short, max_examples=20)
def test_any_change_of_a_folder_gets_an_answer(change, place, nothing_loaded, capsys):
    top = place()
    change(top, top.parent / "outside")
    check(top, [*quick_commands(top), *other_commands(top)], capsys)


@pytest.mark.slow  # alone writes the pages of damaged folders, with all figures
@given(change=changes())
@settings(short, max_examples=5)
def test_any_change_of_a_folder_leaves_a_page(change, place, nothing_loaded, capsys):
    top = place()
    change(top, top.parent / "outside")
    check(top, [report(top), *pages(top)], capsys)


def edit(file, key, value):
    record = json.loads(file.read_text())
    *parents, last = key.split(".")
    inside = record
    for parent in parents:
        inside = inside[parent]
    inside[last] = value
    file.write_text(json.dumps(record))


@pytest.mark.parametrize("command", [["evaluate"], ["attack", "attack=pruning"], ["theory"]])
def test_tasks_that_a_record_names_need_a_permission(command, place, nothing_loaded, capsys):
    run, tasks = place() / RUN, str(Path("outside/tasks").resolve())
    told = answer([*command, run], capsys)
    assert f"names code that would run: tasks of eval.include_path={tasks}" in told
    assert "add --allow-code" in told
    for allowed in (["--allow-code"], ["eval=toy"], [f"eval.include_path={tasks}"]):
        if command != ["theory"] or allowed == ["--allow-code"]:  # it takes no keys
            assert "stopped before anything is loaded" in answer([*command, run, *allowed], capsys)


def test_a_permission_holds_for_what_the_record_turned_on(place):
    run = place() / RUN
    edit(run / "run.json", "config.model.trust_remote_code", True)
    assert not run_config(RunFolder(run), ["eval=toy"]).model.trust_remote_code
    allowed = run_config(RunFolder(run), [], allow_code=True)
    assert (allowed.model.trust_remote_code, Path(allowed.eval.include_path).name) == (True, "tasks")


def test_files_of_another_copy_of_the_package_are_those_of_this_one(place):
    run = place() / RUN
    edit(run / "run.json", "config.eval.include_path", "/elsewhere/site-packages/unlearn/toy/tasks")
    edit(run / "run.json", "config.model.path", "/elsewhere/site-packages/unlearn/toy/none")
    config = run_config(RunFolder(run), [])
    assert config.eval.include_path == str(PACKAGE / "toy/tasks")
    assert config.model.path == "/elsewhere/site-packages/unlearn/toy/none"


@pytest.mark.parametrize("value", ["${oc.env:SECRET}", "${package:antigravity}", "x ${seed}"])
def test_nothing_in_a_record_is_resolved(value, place, nothing_loaded, capsys):
    top = place()
    edit(top / RUN / "run.json", "config.data.name", value)
    edit(top / SWEEP / "2/config.json", "model.name", value)
    told = answer(["evaluate", top / RUN, "eval=toy"], capsys)
    assert f"config.data.name={value} is not allowed: a record holds values" in told
    report = ["report", top / SWEEP, "--format", "csv", "--table", "unusable", "-o", top / "r.csv"]
    check(top, [report], capsys)
    assert f"model.name={value} is not allowed" in (top / "r.csv").read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eval.name", "../../x"),
        ("model.name", "a/b"),
        ("method.name", ".."),
        ("eval.tasks", {"a/b": ["toy_retain"]}),
    ],
)
def test_names_are_no_paths(key, value, place, nothing_loaded, capsys, conf):
    run = place() / RUN
    edit(run / "run.json", f"config.{key}", value)
    assert "it must be a name, without slashes" in answer(["evaluate", run, "--allow-code"], capsys)
    if isinstance(value, str):
        with pytest.raises(UserError, match=rf"{key}=.* is not allowed: it must be a name"):
            conf(f"{key}={value}", "rna.nu=0")


def test_a_record_does_not_say_where_files_go(place):
    run = place() / RUN
    assert RunFolder(run).record["config"]["output_root"].endswith("outside")
    root = run.parent.parent
    assert run_config(RunFolder(run), ["eval=toy"]).output_root == str(root)
    assert run_config(RunFolder(run), ["eval=toy", "output_root=mine"]).output_root == "mine"
    alone = run.rename(root / "alone")
    assert run_config(RunFolder(alone), ["eval=toy"]).output_root == str(alone)
    (root / "cache").symlink_to(root.parent / "outside")
    with pytest.raises(UserError, match="cache: this link leads out of"):
        run_config(RunFolder(alone.rename(run)), ["eval=toy"])


@pytest.mark.parametrize("name", ["partial", "evaluations", "samples.parquet", ".hydra"])
def test_no_link_out_of_a_folder_is_followed(name, place, nothing_loaded, capsys, conf):
    top = place()
    link = top / RUN / name
    shutil.rmtree(link) if link.is_dir() else link.unlink(missing_ok=True)
    link.symlink_to(top.parent / "outside/folder")
    for command in (["evaluate", top / RUN], ["compare", top / OTHER, top / RUN], ["export", top / RUN, "out"]):
        assert f"{link}: this link leads out of {top / RUN}" in answer(command, capsys)
    (top / RUN / "run.json").unlink()
    with pytest.raises(UserError, match="this link leads out of"):
        RunFolder(top / RUN).claim({})  # by a training


def test_a_retry_runs_and_writes_nothing_that_a_sweeps_folder_names_without_a_permission(place, monkeypatch, capsys):
    top = place()
    ran = []
    monkeypatch.setattr("unlearn.sweeps.local.run_local", lambda sweep, configs: ran.append((sweep.code, [*configs])))
    sweep = Sweep.open(top / SWEEP)
    sweep.launcher, sweep.cwd = "local", str(top.parent)
    sweep.write()

    def retried(*flags):
        ran.clear()
        told = answer(["status", top / SWEEP, "--retry", "--once", *flags], capsys)
        return told, list(ran)

    assert retried()[1] == [(None, [1, 2])]
    sweep.code = "code"
    shutil.copytree(PACKAGE, sweep.folder / "code/unlearn", ignore=shutil.ignore_patterns("__pycache__"))
    sweep.write()
    assert retried()[1] == [(None, [1, 2])]  # the same code is copied anew: a compiled file could differ
    (sweep.folder / "code/unlearn/errors.py").write_text("raise SystemExit('ran')")
    edit(sweep.home(2) / "config.json", "eval.include_path", "/tasks")
    edit(sweep.home(2) / "config.json", "output_dir", "/elsewhere/run")
    told, started = retried()
    assert started == []
    for what in (f"{sweep.folder}/code, a copy of the code", "eval.include_path=/tasks", "files in /elsewhere"):
        assert what in told
    assert retried("--allow-code")[1] == [("code", [1, 2])]


def test_a_pipe_in_place_of_scores_does_not_hang(place, capsys):
    run = place() / RUN
    (run / "scores.parquet").unlink()
    os.mkfifo(run / "scores.parquet")
    assert "scores.parquet: it is no regular file" in answer(["compare", run, run.parent / "b"], capsys)
