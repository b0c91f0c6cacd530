"""The wheel in an environment of its own: it alone shows what the wheel lacks that a checkout has.

The environment borrows this one's packages, without the checkout.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.conftest import ROOT

NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
SHORT = ("train.steps=3", "eval=toy", "eval.subset=10", "tracker=none")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an environment's programs, in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    source, environment = folder / "source", folder / "environment"
    for name in ("unlearn", "conf", "sweeps"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet")
    wheel = ("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source))
    subprocess.run([*pip, *wheel], check=True)
    shutil.rmtree(source)
    venv.create(environment)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    [file] = folder.glob("*.whl")
    into = ("--python", str(environment / "bin/python"), "install", "--no-deps", "--no-index", str(file))
    subprocess.run([*pip, *into], check=True)
    return environment / "bin"


@pytest.fixture
def unlearn(installed, tmp_path, monkeypatch):
    """A command line in an empty folder; its output."""
    monkeypatch.delenv("PYTHONPATH", raising=False)

    def run(*arguments, program="unlearn", **environment):
        command = [str(installed / program), *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.slow
def test_the_wheel_runs_evaluates_attacks_and_reports_without_a_network(unlearn, installed, tmp_path):
    where = unlearn("-c", "import unlearn; print(unlearn.__file__)", program="python")
    assert where.startswith(str(installed.parent))
    unlearn("run", "method=rmu", *SHORT, "output_dir=run", **NO_NETWORK)
    unlearn("evaluate", "run", "eval=toy", "eval.subset=5", **NO_NETWORK, HF_HUB_OFFLINE="1")
    unlearn("attack", "run", "attack=pruning", "eval.subset=5", **NO_NETWORK, HF_HUB_OFFLINE="1")
    unlearn("report", "run", **NO_NETWORK)
    written = (
        "metrics.json",
        "delta.safetensors",
        "evaluations/*/metrics.json",
        "attacks/*/scores.parquet",
        "../report.html",
    )
    assert [pattern for pattern in written if not list((tmp_path / "run").glob(pattern))] == []


@pytest.mark.slow
def test_the_wheel_starts_a_sweep_of_its_own_file(unlearn, tmp_path):
    grid = ("hydra/launcher=packed", "sweep=c_rmu", "model.grids.rmu_c='2,3'")
    unlearn("run", "-m", *grid, "train.steps=1", "eval=none", "tracker=none")
    assert len(list((tmp_path / "outputs/runs").glob("*/delta.safetensors"))) == 2
