"""The command line as users type it: launch.py in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import HydraException

from tests.conftest import ROOT
from unlearn.analysis.report.tables import TABLES
from unlearn.cli.arguments import attack_arguments
from unlearn.cli.hints import explain
from unlearn.cli.launch import of_one_job, one_sentence
from unlearn.cli.main import main
from unlearn.config.compose import composed
from unlearn.config.hydra_job import FULL_ERROR
from unlearn.config.settle import settle
from unlearn.errors import UserError
from unlearn.runs.inputs import load_inputs

HEAVY = ("torch", "transformers", "datasets", "lm_eval", "wandb")

# Runs launch.py and, whatever happens, says which heavy packages were imported.
WATCH = f"""
import atexit, runpy, sys
atexit.register(lambda: print("imported:", [m for m in {HEAVY!r} if m in sys.modules]))
sys.argv[0] = "launch.py"
runpy.run_path("launch.py", run_name="__main__")
"""


def launch(*arguments, tmp_path, **environment):
    env = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | environment
    return subprocess.run(
        [sys.executable, "-c", WATCH, *arguments, f"output_root={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip


def test_help_lists_groups_keys_and_examples_without_heavy_imports(tmp_path):
    done = launch("--help", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    for group in ("model", "method", "rna", "data", "train", "eval", "tracker", "experiment", "hydra/launcher"):
        assert f"\n{group}: " in done.stdout or f"\n  {group}: " in done.stdout, group
    assert "python launch.py method=adaptive_rmu rna.nu=0.08" in done.stdout
    assert "imported: []" in done.stdout


def test_cfg_job_shows_the_configuration_without_heavy_imports(tmp_path):
    done = launch("--cfg", "job", "rna.nu=0.07", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nu: 0.07" in done.stdout
    assert "imported: []" in done.stdout


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rna.nu=-1", "rna.nu=-1 is not allowed: it must be a finite number >= 0."),
        ("=3", "=3: cannot be read as KEY=VALUE."),
        ("sweep=figure_2", "sweep=figure_2 needs -m (python launch.py -m sweep=figure_2 ...)."),
        ("search.trials=3", "search.trials needs -m hydra/sweeper=search."),
        ("hydra/sweeper=search", "hydra/sweeper=search needs -m (python launch.py -m hydra/sweeper=search ...)."),
    ],
)
def test_a_mistake_is_one_sentence_at_once_without_heavy_imports(override, told, tmp_path):
    done = launch(override, tmp_path=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"{told}\n")
    assert done.stdout == "imported: []\n"


@pytest.mark.slow  # alone sees what a failed grid prints
def test_a_mistake_of_a_grid_is_told_with_the_jobs_and_nothing_else(tmp_path):
    done = launch("-m", "rna.nu=-1,-2", "hydra/launcher=packed", f"hydra.sweep.dir={tmp_path / 's'}", tmp_path=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-3:] == [
        "2 of 2 jobs failed:",
        "  #0 rna.nu=-1: rna.nu=-1 is not allowed: it must be a finite number >= 0.",
        "  #1 rna.nu=-2: rna.nu=-2 is not allowed: it must be a finite number >= 0.",
    ]
    assert "Error executing job" not in done.stderr


@pytest.mark.slow  # alone uses Hydra's own launcher
def test_hydras_own_launcher_runs_the_jobs_after_one_that_failed(tmp_path):
    jobs = ("rna.nu=-1,0.1,-2", "train.steps=1", "eval=none", "tracker=none", "hydra/launcher=basic")
    done = launch("-m", *jobs, f"hydra.sweep.dir={tmp_path / 's'}", tmp_path=tmp_path)
    assert done.returncode == 1
    assert len(list((tmp_path / "runs").glob("*/delta.safetensors"))) == 1
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr
    failed, first, second = done.stderr.splitlines()[-3:]
    assert failed == "Failed jobs:"
    assert first.startswith("  #0 rna.nu=-1 ")
    assert first.endswith(": rna.nu=-1 is not allowed: it must be a finite number >= 0.")
    assert second.startswith("  #2 rna.nu=-2 ")


@pytest.mark.parametrize("before", [None, "0"])
def test_hydras_variable_is_the_users_in_a_job_and_afterwards(before, monkeypatch):
    monkeypatch.delenv(FULL_ERROR, raising=False)
    if before is not None:
        monkeypatch.setenv(FULL_ERROR, before)
    with one_sentence():
        assert os.environ[FULL_ERROR] == "1"
        with of_one_job():
            assert os.environ.get(FULL_ERROR) == before
        assert os.environ[FULL_ERROR] == "1"
    assert os.environ.get(FULL_ERROR) == before


def test_a_slurm_job_does_not_get_hydras_variable(tmp_path):
    """SLURM hands the environment of sbatch to the job. Here sbatch only keeps it."""
    for name, does in (
        ("scontrol", "echo 'Slurmctld(primary) at here is UP'"),
        ("sbatch", f"env > {tmp_path / 'env'}; echo Submitted batch job 1"),
        ("srun", "exit 1"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    sweep = ("hydra/launcher=slurm", "hydra.launcher.wait=false", f"hydra.sweep.dir={tmp_path / 's'}")
    done = launch("-m", "seed=0,1", *sweep, tmp_path=tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert FULL_ERROR not in (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("rna.nuu=0.1", "rna.nuu: unknown key. Did you mean 'rna.nu'?"),
        (
            "method=rmx",
            "method=rmx: no such option. Did you mean 'rmu'? "
            "Allowed: adaptive_rmu, dpo, grad_diff, npo, rmu, rsv, simnpo.",
        ),
        ("+method.d=3", "method.d: unknown key. RMU takes: c."),
        ("eval=mine", "Where no eval is given, it has the name of data."),
        ("data.use=[bioo]", "data.use: unknown topic 'bioo'. Did you mean 'bio'? Allowed: bio, cyber."),
        (
            "model=qwen3_8b",
            "method.c: model 'qwen3_8b' has no default value for method 'rmu'; it has defaults for: adaptive_rmu. Set "
            "method.c=NUMBER, or add it below `methods` in conf/model/qwen3_8b.yaml.",
        ),
        ("method.alpha=3", "method.alpha: unknown key. Did you mean 'model.alpha'?"),
        ("method.norm=sample", "method.norm exists only with method=adaptive_rmu."),
        ("method.beta=3", "method.beta exists only with method=adaptive_rmu, method=dpo, method=npo, method=simnpo."),
        (
            "eval.asked_of.control=[retain]",
            "eval.asked_of.control: there is no such entry. Add it with +eval.asked_of.control=...",
        ),
        (
            "eval.texts.corpora.retain.wiki=x.txt",
            "eval.texts.corpora.retain.wiki: there is no such entry. Add it with +eval.texts.corpora.retain.wiki=...",
        ),
        ("eval.tasks.retian=[mmlu]", "Add it with +eval.tasks.retian=... Did you mean 'retain'?"),
        (
            "data.topics.chem.forget=F",
            "data.topics.chem: there is no such entry. Add it with "
            "'+data.topics.chem={forget: ..., retain: ..., max_length: ...}'.",
        ),
        ("rna.nu=interval(0,4)", "rna.nu=interval(0,4): several values need -m: a job for each, or a search"),
        ("+method.c=1", "method.c: the key exists already. Leave out the +: method.c=VALUE."),
        ("hydra.launcher.dry_rnu=true", "hydra.launcher.dry_rnu: unknown key. Did you mean 'hydra.launcher.dry_run'?"),
        ("rna.how=1", "rna.how: unknown key. Allowed: nu, scale, per"),
        ("metod=rmu", "metod: unknown key. Did you mean 'method'?"),
        ("eval=nome", "eval=nome: no such option. Did you mean 'none'?"),
        ("model.layer=1", "model.layer=1 is not allowed"),
        ("train.steps=many", "train.steps: Value 'many'"),
        (
            "rna.nu=0,1",
            "rna.nu=0,1: several values were given. Add -m to run a job for each, or write a list as KEY=[A,B].",
        ),
        ("rna.nu=[", "rna.nu=[: cannot be read as KEY=VALUE. Put quotes around a value with commas"),
        ("rna", "rna: cannot be read as KEY=VALUE."),
    ],
)
def test_the_sentence_names_key_and_nearest_name(override, told):
    with pytest.raises((UserError, HydraException)) as error:
        settle(composed([override]))
    assert told in explain(error.value)


@pytest.mark.parametrize("data", ["data=toy", "data=jsonl"])
def test_only_keys_of_the_composed_configuration_are_suggested(data):
    """conf/eval/real.yaml has eval.texts.corpora.forget.security, conf/data/toy.yaml data.topics.bio."""
    for key in ("eval.texts.corpora.forget.cooking", "data.topics.boi.forget"):
        with pytest.raises(HydraException) as error:
            settle(composed([data, "eval=none", f"{key}=F"]))
        told = explain(error.value)
        assert "Add it with" in told
        assert ("Did you mean 'bio'?" in told) is (key.startswith("data.") and data == "data=toy")
        assert "security" not in told


def test_options_may_stand_behind_values(monkeypatch):
    monkeypatch.setattr("sys.argv", ["launch.py", "-m", "a=1", "--config-dir", "DIR", "~b", "--cfg=job", "+c=2"])
    monkeypatch.setenv(FULL_ERROR, "1")
    with one_sentence():
        assert sys.argv == ["launch.py", "-m", "--config-dir", "DIR", "--cfg=job", "a=1", "~b", "+c=2"]


def test_the_configuration_of_a_grid_is_refused_with_what_shows_it(tmp_path):
    done = launch("-m", "rna.nu=0,1", "--cfg", "hydra", tmp_path=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("--cfg shows the configuration of a single job")
    assert len(done.stderr.splitlines()) == 1


def test_ctrl_c_is_one_line(capsys, monkeypatch):
    monkeypatch.delenv(FULL_ERROR, raising=False)
    monkeypatch.setattr("sys.argv", ["launch.py"])
    with pytest.raises(SystemExit) as stop, one_sentence():
        raise KeyboardInterrupt
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Interrupted. Run the same command again to resume.\n"


def test_ctrl_c_in_a_command_is_one_line(capsys, monkeypatch):
    def interrupted(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearn.sweeps.status.show_status", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["status"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "Interrupted. Run the same command again to resume.\n"


def test_relative_paths_are_from_where_the_command_was_started(tmp_path):
    (tmp_path / "short.jsonl").write_text('{"text": "river"}\n')
    file = os.path.relpath(tmp_path / "short.jsonl", ROOT)
    done = launch("hydra.job.chdir=true", f"data.topics.bio.forget={file}", "eval=none", tmp_path=tmp_path)
    assert f"data.topics.bio.forget: {file} has 1 lines" in done.stderr
    assert done.stdout == "imported: []\n"


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    done = launch("eval=none", tmp_path=tmp_path / "file")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith(": Not a directory. Choose another output folder with output_root=DIR.\n")


def test_the_arguments_of_attack_are_sorted_by_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b=c"):
        (tmp_path / name).mkdir()
    parsed = attack_arguments(
        ["attack=lens,probe", "a", "eval.subset=9", "b=c", "+attack.levels=[1]", "attack=pruning"]
    )
    assert parsed.folders == [Path("a"), Path("b=c")]
    assert parsed.attacks == ["lens", "probe", "pruning"]
    assert (parsed.attack_overrides, parsed.overrides) == (["+attack.levels=[1]"], ["eval.subset=9"])
    assert attack_arguments(["a"]).attacks == ["all"]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("relearning", "relearning is not the folder of a run. Did you mean 'attack=relearning'?"),
        ("./no/run", "is not the folder of a run."),
    ],
)
def test_a_word_that_is_no_folder_starts_no_attack(tmp_path, word, told):
    with pytest.raises(SystemExit, match=told.replace("?", r"\?")):
        main(["attack", str(tmp_path), word])


COMMANDS = (
    "evaluate",
    "adopt",
    "attack",
    "compare",
    "report",
    "claims",
    "theory",
    "status",
    "best",
    "equal-effort",
    "export",
    "prefetch",
    "scale",
    "dashboard",
)

# Runs `unlearn COMMAND --help` for every command, and says which heavy packages were imported.
HELP = f"""
import sys
from unlearn.cli.main import main
for command in {COMMANDS!r}:
    main([command, "--help"])
print("imported:", [m for m in {(*HEAVY, "pandas", "altair", "hydra")!r} if m in sys.modules])
"""


def test_every_command_explains_itself_without_heavy_imports():
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("Usage: unlearn ") == len(COMMANDS)
    assert done.stdout.endswith("imported: []\n")


def test_the_help_lists_every_command_in_one_screen(capsys):
    main(["--help"])
    listed = capsys.readouterr().out.partition("Commands:")[2].split("\n")
    assert [line.split()[0] for line in listed if line] == ["run", *COMMANDS]  # Hydra explains `run`
    assert not any(line.endswith("...") for line in listed)


def test_the_help_of_the_report_names_its_tables(capsys):
    main(["report", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in TABLES)


def test_a_wrong_command_line_ends_with_2_and_a_mistake_with_1(tmp_path, capsys):
    for wrong in (["reprot"], ["report"], ["theory", "run", "--limit", "1"], ["status", "--often"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit, match=f"^Error: {tmp_path / 'no'}: this is no sweep's folder"):
        main(["status", str(tmp_path / "no")])
    with pytest.raises(SystemExit, match=f"^Error: {tmp_path / 'no'}: No such file or directory$"):
        main(["claims", str(tmp_path), "--preface", str(tmp_path / "no")])


def test_full_error_gives_the_traceback(tmp_path):
    done = launch("rna.nu=-1", tmp_path=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_shell_completion_can_be_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, "launch.py", "-sc", "install=bash"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "complete -o nospace" in done.stdout


def test_files_are_checked_before_weights_are_loaded(tmp_path):
    """The model's folder holds a configuration and a tokenizer but no weights: they are never asked for."""
    (tmp_path / "empty.jsonl").write_text("")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((ROOT / "unlearn/toy/model" / name).read_bytes())
    done = launch(
        f"model.path={model}", f"data.topics.bio.forget={tmp_path / 'empty.jsonl'}", "eval=none", tmp_path=tmp_path
    )
    assert done.returncode != 0
    assert f"data.topics.bio.forget: {tmp_path / 'empty.jsonl'} has 0 lines, but training needs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.path=/nope", "model.path=/nope: there is no such folder."),
        ("model.device=gpu", "model.device=gpu: this machine has no such device. Allowed: auto, cpu"),
        ("model.device=cuda:99", "model.device=cuda:99: this machine has no such device. Allowed: auto, cpu"),
    ],
)
def test_model_and_device_are_looked_for_first(override, told, conf):
    with pytest.raises(UserError) as error:
        load_inputs(conf(override, "eval=none"))
    assert str(error.value).startswith(told)
