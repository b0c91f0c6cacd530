"""`python -m bench.gpu`, small, on a CPU."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.utils.flop_counter import FlopCounterMode

from bench import shapes
from bench.baseline import train_plainly
from bench.flops import published_step
from bench.gpu import device, likelihood, profile, training
from bench.gpu.__main__ import chosen, main
from bench.gpu.device import build
from tests.conftest import ROOT
from unlearn.data.batches import batches
from unlearn.training.cost import Shape

SMALL = ["--width", "0.03125", "--batch", "1", "--lengths", "32", "--questions", "2", "--steps", "4"]
SMALL += ["--seconds", "86400"]  # on a busy machine, too, no section is left out
CPU = torch.device("cpu")
LAYERS, VARIANTS, GEMM_S = 10, 3, 0.02  # enough of each to measure something


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What no option makes small: the model's depth, a grid's size, and how long matrices are multiplied."""
    zephyr = shapes.zephyr(0.03125)
    zephyr.num_hidden_layers = LAYERS
    monkeypatch.setattr(shapes, "zephyr", lambda _width: zephyr)
    monkeypatch.setattr(training, "MANY", VARIANTS)
    bounds = {(min(count, VARIANTS), precision): gb for (count, precision), gb in training.BOUNDS_GB.items()}
    monkeypatch.setattr(training, "BOUNDS_GB", bounds)
    monkeypatch.setattr(likelihood, "POINTS", VARIANTS)
    monkeypatch.setattr(device, "GEMM_S", GEMM_S)


def measured(file, *arguments):
    """The exit status and the rows of the file."""
    with pytest.raises(SystemExit) as end:
        main([*SMALL, "-o", str(file), *arguments])
    return end.value.code, json.loads(file.read_text())["rows"]


@pytest.mark.slow
def test_every_section_leaves_figures_and_all_checks_pass(tmp_path):
    code, rows = measured(tmp_path / "gpu.json")
    assert code == 0
    assert {row["section"] for row in rows} == {"a", "b", "c", "d", "n", "p"}
    assert all(row["passed"] for row in rows if "passed" in row)
    assert sum(row["case"].startswith(("ours", "published")) and row.get("seconds", 0) > 0 for row in rows) >= 9
    assert [row["cut"] for row in rows if "cut" in row] == ["exact"] * 10
    [killed] = [row for row in rows if row["case"].startswith("killed")]
    assert (killed["exit_status"], killed["resumed_after"]) == (-9, 3)
    assert_methods_on_likelihoods([row for row in rows if row["section"] == "n"])


def assert_methods_on_likelihoods(rows):
    """They are timed beside the published way, and their memory is estimated."""
    timed = [row for row in rows if "seconds" in row]
    assert [row["case"].split(",")[0] for row in timed] == ["ours", "ours", "ours", "published"]
    assert all(row["share_of_gemm"] > 0 and row["steps"] >= 4 for row in timed)
    kept, recomputed, several, published = (row["tflop"] for row in timed)
    assert kept < recomputed < several
    assert kept < published
    estimates = [row["estimated_gb"] for row in rows if "estimated_gb" in row]
    assert len(estimates) == 3
    assert estimates[1] < estimates[0]  # recomputing saves memory


@pytest.mark.slow  # alone runs the cases of the GPU bench in processes of their own
def test_a_case_that_fails_is_a_row_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(training._Bench, "_published", broken)
    code, rows = measured(tmp_path / "gpu.json", "--sections", "b")
    assert code == 1
    assert [row["error"] for row in rows if "published" in row["case"]] == ["RuntimeError: CUDA out of memory"] * 2
    ours = [row for row in rows if row["section"] == "b" and row["case"].startswith("ours")]
    assert len(ours) == 7
    assert all(row["share_of_gemm"] > 0 and row["steps"] >= 5 for row in ours)
    assert capsys.readouterr().out.count("\n") == len(rows) + 1  # each figure is printed


def test_a_section_that_cannot_begin_is_a_row_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(training, "gemm_rate", broken)
    code, rows = measured(tmp_path / "gpu.json", "--sections", "b", "p")
    assert code == 1
    assert rows == [
        {"section": "b", "case": "section", "error": "RuntimeError: CUDA out of memory"},
        {"section": "p", "case": "profile", "skipped": "no GPU"},
    ]


def test_no_section_begins_after_the_time_is_over(tmp_path):
    _, rows = measured(tmp_path / "gpu.json", "--seconds", "-1")
    assert [(row["section"], row["case"]) for row in rows] == [(s, "skipped") for s in ("a", "b", "c", "n", "p")]


@pytest.mark.slow  # alone runs the memory section of the GPU bench
def test_memory_alone_runs_what_has_a_bound(tmp_path):
    code, rows = measured(tmp_path / "gpu.json", "--sections", "d")
    memory = [row for row in rows if row["section"] == "d"]
    assert code == 0
    assert len(memory) == len(training.BOUNDS_GB)
    assert all(row["estimated_gb"] > 0 and row["skipped"] == "not measured: no GPU" for row in memory)


@pytest.mark.parametrize(
    ("peak", "estimate", "passed"),
    [(9.1, 10.4, True), (8.7, 10.4, False), (10.5, 10.4, False), (12.5, 13.0, False)],
)
def test_memory_passes_below_the_bound_and_a_little_below_the_estimate(monkeypatch, peak, estimate, passed):
    monkeypatch.setattr(training, "training_memory", lambda *_, **__: SimpleNamespace(total=lambda _: estimate * 1e9))
    rows = []
    results = SimpleNamespace(add=lambda *_, **figures: rows.append(figures))
    shape = SimpleNamespace(hidden=4096)
    training._Bench(results, None, CPU, 4, 1.0, shape).memory("", 512, 1, "master", peak)
    assert rows[0]["passed"] is passed


def test_sections_that_are_chosen_twice_run_once():
    assert chosen(["a", "b", "c", "d", "p"], False) == ["a", "b", "c", "p"]
    assert chosen(["d"], True) == ["d", "p"]
    assert chosen(["c", "p"], True) == ["c", "p"]


@pytest.mark.slow
def test_training_needs_no_package_that_a_bare_gpu_machine_lacks():
    """Section b, with the import of these packages made impossible."""
    code = f"""
import importlib.util, sys
blocked = {{"hydra", "omegaconf", "lm_eval", "datasets", "wandb", "pytest"}}
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in blocked else find(name, package)
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocked())
from bench.gpu import device, training
from bench.gpu.__main__ import main
device.GEMM_S, training.MANY = {GEMM_S}, {VARIANTS}
main({[*SMALL, "--sections", "b"]})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert "published, 32 tokens" in done.stdout


@pytest.mark.parametrize("everything", [True, False])
def test_flops_of_the_published_ways_are_those_that_torch_counts(everything):
    config = shapes.zephyr(0.03125)
    shape, length, batch = Shape.of(config, shapes.LAYER), 8, 2
    parts = dict.fromkeys(("forget", "retain"), (batch * length, length))
    formula = published_step(shape, parts, frozen_forget=False)
    if not everything:
        formula = training.at_its_best_step(shape, parts)
    stream = batches(
        [shapes.equal_lengths(length, batch, config.vocab_size)], steps=1, batch_size=batch, pad_id=0, side="right"
    )
    with FlopCounterMode(display=False) as counter:
        train_plainly(build(config, CPU), build(config, CPU), stream, training.NU, everything=everything)
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    assert formula == pytest.approx(products, rel=0.01)  # torch does not count attention's on a CPU


def test_the_clock_has_a_time_for_each_step_that_counts(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(ticks))
    for ahead in (0, 1):
        clock = training.Clock(CPU, ahead)
        assert len(list(clock.watch(range(9)))) == 9
        assert clock.stop(9) == [1] * (9 - training.WARM)


def test_the_profile_counts_kernels_not_also_the_calls_that_start_them():
    def row(key, device, milliseconds):
        return SimpleNamespace(key=key, device_type=device, self_device_time_total=1e3 * milliseconds * profile.STEPS)

    rows = profile.operations(
        [row("aten::mm", DeviceType.CPU, 30), row("add", DeviceType.CUDA, 9), row("gemm", DeviceType.CUDA, 30)]
    )
    assert [r.key for r in rows] == ["gemm", "add"]
    figures = profile.idle(rows, step_s=0.05)
    assert figures["busy_ms_a_step"] == pytest.approx(39)
    assert figures["idle_share"] == pytest.approx(0.22)
