"""Whole runs on the embedded model: what they leave behind, what they refuse, what survives a failure."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM, AutoTokenizer, Gemma3Config

from tests.conftest import ROOT, assert_same_results, read_jsonl, read_metrics, untimed, write_jsonl
from unlearn.config.identity import run_folder
from unlearn.errors import UserError
from unlearn.evaluation.harness import evaluate
from unlearn.experiment import run, run_together
from unlearn.models.delta import load_delta, save_delta
from unlearn.models.export import export
from unlearn.models.loading import Source, load_config
from unlearn.records.samples import read_samples
from unlearn.runs.folder import RunFolder
from unlearn.training.cost import Shape

METHODS = sorted(f.stem for f in (ROOT / "conf/method").glob("*.yaml"))
EXPERIMENTS = sorted(f.stem for f in (ROOT / "conf/experiment").glob("*.yaml"))
ON_TOY = ("model=toy", "data=toy", "train.steps=1", "eval=none")


@pytest.mark.parametrize("group", ["model", "data", "eval", "tracker", "rna", "train"])
def test_every_file_of_conf_composes(conf, group):
    for file in (ROOT / "conf" / group).glob("*.yaml"):
        extra = {
            "data/jsonl": ["+data.topics.a={forget: f, retain: r, max_length: 4}"],
            "eval/jsonl": ["data=jsonl", "+data.topics.a={forget: f, retain: r, max_length: 4}"],
            "model/qwen3_8b": ["method=adaptive_rmu"],
            "model/deep_ignorance": ["method=adaptive_rmu"],
        }.get(f"{group}/{file.stem}", [])
        extra = [*extra, "eval=none"] if group == "model" else extra
        if file.stem in ("smollm2_135m", "gemma3_270m"):
            extra = ["model.path=elsewhere", "eval=none"]  # their packages need not be installed
        config = conf(f"{group}={file.stem}", *extra)
        assert getattr(getattr(config, group), "name", file.stem) == file.stem


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(short, method):
    folder = run(short(f"method={method}"))
    assert json.loads((folder / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_for_a_step_on_the_embedded_model(short, experiment):
    folder = run(short(f"experiment={experiment}", *ON_TOY))
    assert len(read_jsonl(folder / "train.jsonl")) == 1


def test_a_multimodal_checkpoint_is_trained_asked_and_exported(short, tmp_path):
    torch.manual_seed(0)
    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "unlearn/toy/model")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=sizes | {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": 8},
        vision_config=sizes | {"image_size": 8, "patch_size": 4},
    )
    AutoModelForMultimodalLM.from_config(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "preprocessor_config.json").write_text('{"image_processor_type": "Gemma3ImageProcessor"}')
    model = (f"model.path={base}", "model.num_layers=6", "model.layer=3", "model.name=tiny")
    folder = run(
        short(*model, "eval=toy", "eval.for_model=null", "eval.limit=3", "eval.maxlogit.tokens=2", "train.lr=1e-2")
    )
    metrics = read_metrics(folder)
    assert {"base/toy_retain/default/acc", "unlearned/toy_retain/perturbed/acc"} <= metrics.keys()
    out = tmp_path / "exported"
    export(folder, out)
    before, after = (load_file(f / "model.safetensors") for f in (base, out))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"language_model.model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)}
    assert (out / "preprocessor_config.json").read_text() == (base / "preprocessor_config.json").read_text()


def test_what_a_run_leaves(short):
    config = short("eval=toy", "eval.limit=6")
    folder = run(config)
    assert folder == run_folder(config)
    assert {f.name for f in folder.iterdir()} == {
        "run.json", "train.jsonl", "metrics.json", "scores.parquet", "samples.parquet", "delta.safetensors",
    }  # fmt: skip
    lines = read_jsonl(folder / "train.jsonl")
    assert [(line["step"], line["topic"]) for line in lines] == [(0, "bio"), (1, "cyber"), (2, "bio")]
    metrics = read_metrics(folder)
    samples = read_samples(folder)
    tasks = ["toy_retain", "toy_near_bio", "toy_near_cyber", "toy_forget_bio", "toy_forget_cyber"]
    for model in ("base", "unlearned"):
        for task in tasks:
            for query in ("default", "perturbed"):
                assert 0 <= metrics[f"{model}/{task}/{query}/acc"] <= 1
                assert f"{model}/{task}/{query}/acc_stderr" in metrics
                asked = [s for s in samples if (s.model, s.task, s.query) == (model, task, query)]
                assert sum(s.correct for s in asked) / 6 == pytest.approx(metrics[f"{model}/{task}/{query}/acc"])
                assert all(len(s.loglikelihoods) == 4 for s in asked)
                assert all(s.choice == max(range(4), key=s.loglikelihoods.__getitem__) for s in asked)
    assert metrics["train/forget_loss"] == lines[-1]["forget_loss"]
    assert metrics["train/steps"] == 3
    assert {"train/seconds", "train/tokens_per_second", "train/peak_memory_mb"} < set(metrics)
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["method"]["c"] == config.method["c"]
    assert set(record["inputs"]["data"]) == {"bio", "cyber"}
    for other in ("base", "default"):  # paired differences: model against base, perturbed against default
        assert f"unlearned/toy_retain/perturbed/{other}_p" in metrics
    tensors = load_file(folder / "delta.safetensors")
    layer = config.model.layer
    matrices = {f"model.layers.{i}.mlp.down_proj.weight" for i in (layer - 2, layer - 1, layer)}
    assert set(tensors) == matrices | {"control.bio", "control.cyber"}


def test_two_runs_that_want_one_folder_are_refused(short, tmp_path):
    one, two = (short(f"output_dir={tmp_path / 'mine'}", f"rna.nu={nu}") for nu in (0.1, 0.2))
    with pytest.raises(UserError, match="is used by two runs"):
        run_together([one, two])
    assert not (tmp_path / "mine").exists()


def test_a_finished_run_is_not_repeated_unless_forced(short, capsys):
    folder = run(short())
    (folder / "attacks").mkdir()
    (folder / "attacks" / "pruning-0.json").write_text("{}")
    before = (folder / "train.jsonl").stat().st_mtime_ns
    run(short())
    assert "nothing to do" in capsys.readouterr().err
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    assert (folder / "attacks").exists()
    run(short("train.force=true"))
    assert (folder / "train.jsonl").stat().st_mtime_ns > before
    assert not (folder / "attacks").exists()  # on the former run


def test_nu_zero_equals_no_rna_and_a_run_without_rna_says_so(short, tmp_path, capsys):
    one = run(short("rna=none", f"output_dir={tmp_path / 'a'}"))
    assert "Without RNA (rna.nu=0)" in capsys.readouterr().err
    two = run(short("rna.nu=0", f"output_dir={tmp_path / 'b'}"))
    assert "Without RNA (rna.nu=0)" in capsys.readouterr().err
    three = run(short("rna.nu=0.09", f"output_dir={tmp_path / 'c'}"))
    assert "Without RNA" not in capsys.readouterr().err
    a, b, c = (load_file(folder / "delta.safetensors") for folder in (one, two, three))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_several_configurations_share_one_process(short):
    configs = [short(f"rna.nu={nu}") for nu in (0.01, 0.09)]
    folders = [outcome.folder for outcome in run_together(configs)]
    assert folders == [run_folder(config) for config in configs]
    alone = run(short("rna.nu=0.09", f"output_dir={folders[0].parent / 'alone'}"))
    a, b = load_file(folders[1] / "delta.safetensors"), load_file(alone / "delta.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(UserError, match=r"train\.steps differs"):
        run_together([short(), short("train.steps=4")])


@pytest.mark.slow  # alone compares the files of runs evaluated together and alone
def test_runs_evaluated_together_have_the_files_of_runs_alone(short, tmp_path):
    job = ("eval=toy", "eval.limit=3", "eval.maxlogit.tokens=2", "method.c=50")
    job += ("eval.maxlogit.roles=[near]", "eval.maxlogit.queries=[default,perturbed]")
    together = [outcome.folder for outcome in run_together([short(*job, f"rna.nu={nu}") for nu in (0.1, 0.5, 2)])]
    for nu, folder in zip((0.1, 0.5, 2), together, strict=True):
        alone = run(short(*job, f"rna.nu={nu}", f"output_dir={tmp_path / str(nu)}", f"output_root={tmp_path / 'else'}"))
        assert_same_results(folder, alone)
        metrics = [untimed(read_metrics(f)) for f in (folder, alone)]
        assert metrics[0] == metrics[1]
    answers = {(folder / "samples.parquet").read_bytes() for folder in together}
    assert len(answers) == 3


@pytest.mark.slow  # alone evaluates a wrong delta beside right ones
def test_a_delta_of_another_model_fails_its_run_alone(short, monkeypatch, capsys):
    configs = [short("eval=toy", "eval.limit=1", f"seed={seed}") for seed in range(3)]
    with monkeypatch.context() as patched:
        patched.setattr("unlearn.evaluation.evaluator.evaluate", None)
        assert all(outcome.error for outcome in run_together(configs))
    delta = run_folder(configs[1]) / "delta.safetensors"
    frozen = {name: w + 1 for name, w in load_delta(delta)[0].items()}
    save_delta(delta, frozen, frozen, {}, {})
    outcomes = run_together(configs)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), UserError, type(None)]
    assert "another base model" in str(outcomes[1].error)
    assert "one after another" in capsys.readouterr().err


@pytest.mark.slow  # alone fails one of several runs in each stage
def test_one_of_several_fails_alone_in_each_stage(short, monkeypatch):
    configs = [short(f"method.c={c}", "eval=toy", "eval.limit=1") for c in (2, 1e30, 3, 4)]
    taken = RunFolder(run_folder(configs[2]))
    with taken.locked():
        taken.start({}, {"another": "run"}, {})
    real = evaluate

    def failing(model, *args, label, **kwargs):
        if label == "unlearned":
            raise RuntimeError("out of memory")
        return real(model, *args, label=label, **kwargs)

    monkeypatch.setattr("unlearn.evaluation.evaluator.evaluate", failing)
    outcomes = run_together(configs)
    records = [json.loads((outcome.folder / "run.json").read_text()) for outcome in outcomes]
    assert [type(outcome.error) for outcome in outcomes] == [RuntimeError, UserError, UserError, RuntimeError]
    assert [record.get("error") for record in records] == [
        "RuntimeError: out of memory", str(outcomes[1].error), None, "RuntimeError: out of memory"
    ]  # fmt: skip
    assert "the loss became" in str(outcomes[1].error)
    assert "holds another run" in str(outcomes[2].error)
    assert (outcomes[0].folder / "delta.safetensors").exists()
    monkeypatch.setattr("unlearn.evaluation.evaluator.evaluate", real)
    assert run_together([configs[0], configs[0]])[1].error is None  # given twice, run once


def test_own_corpora_and_any_number_of_topics(short, tmp_path):
    retain = tmp_path / "retain.txt"
    retain.write_text("river harbour ruler\n" * 8)
    topics = []
    for name in ("a", "b", "c"):
        file = write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"soil blossom {name}"}] * 8)
        topics.append(f"+data.topics.{name}={{forget: {file}, retain: {retain}, max_length: 8}}")
    folder = run(short("data=jsonl", "data.held_out=0", *topics, "train.steps=4"))
    assert [line["topic"] for line in read_jsonl(folder / "train.jsonl")] == ["a", "b", "c", "a"]


def test_other_data_under_the_same_name_are_not_taken_for_the_same_run(short, tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": "soil blossom"}] * 16)
    overrides = ("data=jsonl", "data.held_out=0", f"+data.topics.a={{forget: {file}, retain: {file}, max_length: 8}}")
    run(short(*overrides))
    write_jsonl(file, [{"text": "river ruler"}] * 16)
    with pytest.raises(UserError, match=r"other inputs; they differ in data\.a\.forget, data\.a\.retain"):
        run(short(*overrides))


def test_a_loss_that_is_not_finite_fails_the_run_and_keeps_what_was_logged(short):
    config = short("method.c=1e30", "train.steps=5")
    with pytest.raises(UserError, match=r"the loss became (inf|nan) at step 0, topic bio"):
        run(config)
    folder = run_folder(config)
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed"
    assert "step 0" in record["error"]
    assert not (folder / "delta.safetensors").exists()
    assert (folder / "train.jsonl").exists()


def test_an_unexpected_failure_is_recorded_too(short, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("unlearn.evaluation.evaluator.evaluate", fail)
    config = short("eval=toy", "eval.limit=1")
    with pytest.raises(RuntimeError, match="out of memory"):
        run(config)
    record = json.loads((run_folder(config) / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: out of memory")
    assert (run_folder(config) / "delta.safetensors").exists()  # what was computed is not lost


def test_the_models_layers_must_be_as_many_as_stated(short):
    with pytest.raises(UserError, match=r"model\.num_layers=32, but .* has 8 layers"):
        run(short("model.num_layers=32"))


@pytest.mark.slow  # alone scans all of lm-eval's tasks for a wrong name
def test_wrong_tasks_are_named_before_anything_is_trained(short):
    config = short("eval=toy", "eval.tasks={retain: [toy_retan]}")
    with pytest.raises(UserError, match=r"unknown lm-eval task 'toy_retan'\. Did you mean 'toy_retain'\?"):
        run(config)
    assert not run_folder(config).exists()


def test_a_place_that_cannot_be_written_to_is_named_before_anything_is_loaded(short, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"not writable .* Set output_root=DIR to another folder"):
        run(short(f"output_root={tmp_path / 'file'}"))


def test_a_full_disk_is_named_before_training(short, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))  # a mock: no disk is filled
    with pytest.raises(UserError, match=r"its disk has 0\.0 GB free; deltas and checkpoints need"):
        run(short())


@pytest.mark.slow  # alone counts the bytes that runs write
@pytest.mark.parametrize(
    ("overrides", "matrices"),
    [
        ((), 2),  # of each run its delta: no checkpoint before the last step
        (("train.checkpoint_every=2",), 2 * (1 + 3) + 3),  # with moments, and one run's next checkpoint
        (("eval=toy", "eval.every=1", "eval.every_questions=1"), 2 * (1 + 2)),
    ],
)
def test_a_disk_has_to_hold_what_two_runs_write_and_no_more(short, monkeypatch, overrides, matrices):
    def stop(*_args, **_kwargs):
        raise UserError("that is enough")

    monkeypatch.setattr("unlearn.experiment.train_variants", stop)
    configs = [short(*overrides, f"seed={seed}") for seed in range(2)]
    shape = Shape.of(load_config(Source.of(configs[0].model)), configs[0].model.layer)
    needed = matrices * 3 * 4 * shape.trained  # three layers, float32
    usage = shutil.disk_usage("/")
    for free, told in ((needed, "that is enough"), (needed - 1, "GB free; deltas")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        with pytest.raises(UserError, match=told):
            run_together(configs)
