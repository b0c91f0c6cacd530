"""A run that differs from a finished one in `eval` alone takes over its training."""

import json

import pytest
import torch

from tests.conftest import assert_same_results, read_jsonl, read_metrics
from unlearn import experiment
from unlearn.config.identity import identity, name_of, run_folder, training_identity
from unlearn.errors import UserError
from unlearn.experiment import run, run_together
from unlearn.models.delta import dtype_of, load_delta
from unlearn.models.loading import Source
from unlearn.runs.evaluation import evaluate_run, run_config
from unlearn.runs.folder import RunFolder
from unlearn.runs.takeover import find_training
from unlearn.storage.hashing import json_sha256

ASKED = ("eval=toy", "~eval.tasks", "+eval.tasks={retain: [toy_retain]}", "eval.limit=2")


@pytest.fixture
def trained(monkeypatch):
    """How many variants each training has."""
    counts = []
    real = experiment.train_variants

    def counted(cut, variants, *args, **kwargs):
        counts.append(len(variants))
        real(cut, variants, *args, **kwargs)

    monkeypatch.setattr(experiment, "train_variants", counted)
    return counts


def test_nothing_is_trained_and_the_result_is_that_of_a_run_of_its_own(short, tmp_path, trained):
    first = run(short())
    second = run(short(*ASKED))
    assert trained == [1]
    assert second != first
    assert (second / "delta.safetensors").read_bytes() == (first / "delta.safetensors").read_bytes()
    assert read_jsonl(second / "train.jsonl") == read_jsonl(first / "train.jsonl")
    records = [json.loads((folder / "run.json").read_text()) for folder in (first, second)]
    assert records[1]["training_from"] == first.name
    assert records[0]["hashes"]["training"] == records[1]["hashes"]["training"]
    assert records[0]["hashes"]["run"] != records[1]["hashes"]["run"]
    metrics = read_metrics(second)
    assert metrics["train/steps"] == 3
    assert "unlearned/toy_retain/perturbed/acc" in metrics
    assert not (second / "checkpoint.safetensors").exists()
    third = run(short(*ASKED, "eval.limit=3"))
    assert json.loads((third / "run.json").read_text())["training_from"] == first.name
    assert trained == [1]
    own = run(short(*ASKED, f"output_root={tmp_path / 'elsewhere'}"))
    assert trained == [1, 1]
    deltas = [load_delta(folder / "delta.safetensors")[0] for folder in (second, own)]  # their metadata name the run
    assert all(torch.equal(w, deltas[1][name]) for name, w in deltas[0].items())
    assert_same_results(second, own)


def test_in_a_grid_too(short, trained):
    """Two packs, since `eval` differs: the second one trains the new point alone."""
    run_together([short(), short("seed=1")])
    run_together([short("seed=1", *ASKED), short("seed=2", *ASKED)])
    assert trained == [2, 1]


def test_another_training_is_not_taken(short):
    first = run(short())
    inputs = RunFolder(first).record["inputs"]
    assert find_training(short(*ASKED), inputs).path == first
    for change in ("seed=1", "train.lr=1e-4", "rna.nu=0.1", "loss.alpha=3"):
        assert find_training(short(change, *ASKED), inputs) is None, change
    assert find_training(short(*ASKED), inputs | {"model": "another"}) is None
    whole = (first / "run.json").read_text()
    (first / "run.json").write_text("{")  # not readable
    assert find_training(short(*ASKED), inputs) is None
    (first / "run.json").write_text(whole)
    (first / "delta.safetensors").unlink()
    assert find_training(short(*ASKED), inputs) is None


def test_the_same_configuration_in_another_folder_and_a_forced_run_train_again(short, tmp_path, trained):
    """The first would repeat what is there: whoever asks for that wants to compare."""
    run(short())
    run(short(f"output_dir={tmp_path / 'again'}"))
    assert trained == [1, 1]
    run(short("train.force=true", *ASKED))
    assert trained == [1, 1, 1]


@pytest.fixture
def auto_is_bfloat16(monkeypatch):
    """As on a GPU."""

    def dtype(source):
        return torch.bfloat16 if source.dtype == "auto" else getattr(torch, source.dtype)

    return lambda: monkeypatch.setattr(Source, "torch_dtype", property(dtype))


def test_a_training_in_another_dtype_is_not_taken(short, trained, auto_is_bfloat16):
    first = run(short())
    auto_is_bfloat16()
    second = run(short(*ASKED))
    assert trained == [1, 1]
    assert dtype_of(second / "delta.safetensors") == "bfloat16"
    assert run(short()) == first  # it is finished
    record = json.loads((first / "run.json").read_text())
    (first / "run.json").write_text(json.dumps(record | {"status": "running"}))
    with pytest.raises(UserError, match=r"this run was started in float32, .* set model\.dtype=bfloat16 to start"):
        run(short())
    assert run(short("model.dtype=bfloat16")) not in (first, second)
    run(short("train.force=true"))
    assert json.loads((first / "run.json").read_text())["inputs"]["dtype"] == "bfloat16"


def test_a_run_is_evaluated_in_the_dtype_of_its_training(short, auto_is_bfloat16):
    folder = RunFolder(run(short(*ASKED, "eval.queries=[default]")))
    auto_is_bfloat16()
    assert run_config(folder, []).model.dtype == "float32"
    assert evaluate_run(folder, ["eval.queries=[control]"]).is_dir()


def test_float16_is_for_evaluation_alone(short):
    with pytest.raises(UserError, match=r"model\.dtype=float16 is not allowed in training, where small gradients"):
        run(short("model.dtype=float16"))


def test_the_identity_of_a_training_is_all_but_the_evaluation(conf):
    a, b = identity(conf("eval=toy")), identity(conf("eval=none"))
    assert a != b
    assert training_identity(a) == training_identity(b)
    assert json_sha256(a)[:10] == name_of(a).rpartition("-")[2] == run_folder(conf("eval=toy")).name.rpartition("-")[2]
