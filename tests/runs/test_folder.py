"""A run's folder describes the run, is never left half-written, and is not mistaken for another run's."""

import json
import subprocess

import pytest

from unlearn.errors import UserError
from unlearn.experiment import run
from unlearn.records.answers import Answers
from unlearn.records.scores import read_scores
from unlearn.runs.folder import RunFolder
from unlearn.runs.provenance import code_version
from unlearn.storage.files import write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_scratch(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_atomically(file, "old")
    monkeypatch.setattr("os.fsync", lambda _fd: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_whoever_reads_sees_the_old_file_or_the_new_one_whole(tmp_path):
    file = tmp_path / "a.json"
    write_atomically(file, "old")
    with file.open() as reading:
        write_atomically(file, "new and longer")
        assert reading.read() == "old"
    assert file.read_text() == "new and longer"


def test_a_run_goes_from_running_to_done(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.start({"seed": 0}, {"nu": 0.1}, {"data": "abc"})
        record = json.loads((tmp_path / "run/run.json").read_text())
        assert record["status"] == "running"
        assert record["config"] == {"seed": 0}
        assert record["packages"]["torch"]
        assert set(record["code"]) == {"version", "commit", "changed"}
        folder.record["trained"] = {"steps": 3}
        (tmp_path / "run/delta.safetensors").touch()
        folder.finish(Answers([], []))
    again = RunFolder(tmp_path / "run")
    assert again.done
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == {"train": {"steps": 3}}
    assert read_scores(tmp_path / "run") == []


def test_a_failed_run_says_why_and_is_not_done(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.locked():
        folder.start({}, {}, {})
        folder.fail("the loss became nan")
    assert not RunFolder(tmp_path).done
    assert RunFolder(tmp_path).record["error"] == "the loss became nan"


def test_another_run_or_other_inputs_are_refused_by_name(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.locked():
        folder.start({}, {"rna": {"nu": 0.1}, "seed": 0}, {"data": {"bio": "abc"}})
        folder.finish(Answers([], []))
    again = RunFolder(tmp_path)
    again.claim({"rna": {"nu": 0.1}, "seed": 0})
    again.verify({"data": {"bio": "abc"}})
    with pytest.raises(UserError, match=r"another run, which differs in rna\.nu\. "):
        again.claim({"rna": {"nu": 0.2}, "seed": 0})
    with pytest.raises(UserError, match=r"they differ in data\.bio"):
        again.verify({"data": {"bio": "xyz"}})


def test_starting_again_removes_what_was_left(tmp_path):
    for name in (
        "train.jsonl",
        "metrics.json",
        "scores.parquet",
        "samples.parquet",
        "theory.json",
        "delta.safetensors",
    ):
        (tmp_path / name).write_text("old")
    (tmp_path / "evaluations/toy").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("the user's own")
    folder = RunFolder(tmp_path)
    with folder.locked():
        folder.start({}, {}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "run.json"]


@pytest.mark.parametrize("name", ["samples.parquet", "metrics.json", "theory.json"])
def test_files_that_are_no_runs_are_not_replaced(short, tmp_path, name):
    own = tmp_path / "mine" / name
    own.parent.mkdir()
    own.write_text("the user's own")
    with pytest.raises(UserError, match=r"mine is not the folder of a run .*, and a run would replace"):
        run(short(f"output_dir={own.parent}"))
    assert own.read_text() == "the user's own"
    assert [file.name for file in own.parent.iterdir()] == [name]


def test_a_run_json_of_something_else_is_not_replaced(short, tmp_path):
    own = tmp_path / "mine/run.json"
    own.parent.mkdir()
    own.write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"its run\.json is something else\), and a run would replace run\.json"):
        run(short(f"output_dir={own.parent}"))
    assert own.read_text() == '{"mine": 1}'


def test_a_users_own_files_stay(tmp_path):
    names = (".notes.tmp", "below/.notes.tmp", ".run.json.tmp", "alive.json", "progress.json", "theory_notes.json")
    (tmp_path / "below").mkdir()
    for name in names:
        (tmp_path / name).write_text("the user's own")
    folder = RunFolder(tmp_path)
    folder.check_files()
    for inputs in ({"rows": 1}, {"rows": 2}):
        with folder.locked() as lock:
            folder.start({}, {"seed": 0}, inputs)
            lock._beat()
            folder.finish(Answers([], []))
        (tmp_path / "steps").mkdir()
        folder.tidy()
    assert {name: (tmp_path / name).read_text() for name in names} == dict.fromkeys(names, "the user's own")
    assert {file.name for file in tmp_path.iterdir()} == {
        "run.json", "scores.parquet", "samples.parquet", "metrics.json", *(name.partition("/")[0] for name in names)
    }  # fmt: skip


def test_a_run_that_was_killed_while_its_files_were_replaced_goes_on(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    with folder.locked():
        folder.start({}, {"seed": 0}, {"rows": 1})
        for name in ("train.jsonl", "metrics.json"):
            (tmp_path / name).write_text("old")
        with monkeypatch.context() as patch:
            patch.setattr("unlearn.runs.folder.code_version", killed)
            with pytest.raises(KeyboardInterrupt):
                folder.start({}, {"seed": 0}, {"rows": 2})
    (tmp_path / "metrics.json").write_text("old")  # as if it had been killed before
    again = RunFolder(tmp_path)
    again.claim({"seed": 0})
    with again.locked():
        again.start({}, {"seed": 0}, {"rows": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def killed(*_):
    raise KeyboardInterrupt


def test_hydras_record_is_kept(tmp_path):
    (tmp_path / "hydra/.hydra").mkdir(parents=True)
    (tmp_path / "hydra/.hydra/config.yaml").write_text("seed: 0")
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.keep_hydra_files(tmp_path / "hydra")
    assert (tmp_path / "run/.hydra/config.yaml").read_text() == "seed: 0"


def test_only_changes_of_code_and_configuration_count(tmp_path, monkeypatch):
    def git(*args):
        identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *args], check=True, capture_output=True)

    (tmp_path / "unlearn").mkdir()
    for name in ("launch.py", "unlearn/run_folder.py"):
        (tmp_path / name).write_text("")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    monkeypatch.setattr("unlearn.runs.provenance.__file__", str(tmp_path / "unlearn/runs/provenance.py"))
    (tmp_path / "report.html").write_text("")
    (tmp_path / "conf/hydra/launcher/cluster").mkdir(parents=True)
    (tmp_path / "conf/hydra/launcher/cluster/mine.yaml").write_text("partition: gpu")  # only where a run runs
    assert code_version()["changed"] is False
    (tmp_path / "unlearn/new.py").write_text("")
    assert code_version()["changed"] is True
