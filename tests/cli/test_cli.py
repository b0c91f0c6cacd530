"""The command line as users type it: launch.py in a process of its own."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

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
        ("rna.nuu=0.1", "rna.nuu: unknown key. Did you mean 'rna.nu'?"),
        ("method.alpha=3", "method.alpha: unknown key. Did you mean 'model.alpha'?"),
        ("method.norm=sample", "method.norm: a key of method=adaptive_rmu only."),
        ("method.beta=3", "method.beta: a key of method=adaptive_rmu only."),
        ("eval.asked_of.control=[retain]", "eval.asked_of.control: not there yet; +eval.asked_of.control=... adds it."),
        ("eval.tasks.retian=[mmlu]", "+eval.tasks.retian=... adds it. Did you mean 'eval.tasks.retain'?"),
        ("metod=rmu", "metod: unknown key. Did you mean 'method'?"),
        ("method=rmx", "method=rmx: no such option. Did you mean 'rmu'?"),
        ("eval=nome", "eval=nome: no such option. Did you mean 'none'?"),
        ("rna.nu=-1", "rna.nu=-1 is not allowed: it must be a finite number >= 0."),
        ("model.layer=1", "model.layer=1 is not allowed"),
        ("train.steps=many", "train.steps: Value 'many'"),
        ("data.use=[bioo]", "data.use: unknown topic 'bioo'. Did you mean 'bio'? Allowed: bio, cyber."),
        ("model=qwen3_8b", "method.c: the configuration of model 'qwen3_8b' holds no such value"),
    ],
)
def test_a_mistake_is_named_at_once_without_heavy_imports(override, told, tmp_path):
    done = launch(override, tmp_path=tmp_path)
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "imported: []" in done.stdout


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
    assert f"data.topics.bio.forget: {tmp_path / 'empty.jsonl'} holds no document." in done.stderr
    assert "Traceback" not in done.stderr
