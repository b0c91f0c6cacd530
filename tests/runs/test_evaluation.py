"""Evaluation without training: of a finished run, of a checkpoint; prefetching; the base model's answers kept."""

import json
import shutil
import sys
from dataclasses import replace
from fnmatch import fnmatch

import pytest
import torch

from tests.conftest import ROOT, read_metrics
from unlearn.analysis.collect import read_run
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.evaluate import harness
from unlearn.experiment import run
from unlearn.runs.evaluation import evaluate_checkpoint, evaluate_run, run_config
from unlearn.runs.evaluations import asked as asked_of
from unlearn.runs.folder import RunFolder
from unlearn.runs.prefetch import prefetch

HELD_OUT = ROOT / "unlearn/real/data/wikipedia-heldout.jsonl"


def test_a_finished_run_is_evaluated_later_as_it_would_have_been_at_once(short, tmp_path):
    later = run(short(f"output_dir={tmp_path / 'later'}"))
    before = read_metrics(later)
    evaluate_run(RunFolder(later), ["eval=toy", "eval.limit=4"])
    once = run(short("eval=toy", "eval.limit=4", f"output_dir={tmp_path / 'once'}"))
    found, expected = (read_metrics(folder) for folder in (later, once))
    assert before.items() <= found.items()
    asked = {name: value for name, value in expected.items() if not name.startswith("train/")}
    assert asked.items() <= found.items()
    for file in (once / "samples").rglob("*.jsonl"):
        assert (later / file.relative_to(once)).read_bytes() == file.read_bytes()
    record = json.loads((later / "run.json").read_text())
    assert record["status"] == "done"
    assert record["evaluations"][0]["limit"] == 4


def test_another_evaluation_does_not_replace_what_was_evaluated_before(short, capsys):
    folder = run(short("eval=toy", "eval.limit=4"))
    before = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "run.json"}
    fewer = evaluate_run(RunFolder(folder), ["eval=toy", "eval.limit=2"])
    assert fewer.parent == folder / "evaluations"
    assert "where reports do not look" not in capsys.readouterr().err
    assert len((fewer / "samples/unlearned/toy_retain/default.jsonl").read_text().splitlines()) == 2
    other = evaluate_run(RunFolder(folder), ["eval=toy", "eval.limit=2", "eval.seed=1"])
    assert other not in (fewer, folder)
    assert all(file.read_bytes() == content for file, content in before.items())


def test_another_evaluation_leaves_what_the_runs_own_had_begun(short):
    folder = run(short("eval=toy", "eval.limit=2", "eval.queries=[default]"))
    begun = folder / "partial" / "step-000001" / "journal"
    begun.parent.mkdir(parents=True)
    begun.write_text("answers")
    evaluate_run(RunFolder(folder), ["eval.queries=[control]"])
    assert [file for file in (folder / "partial").rglob("*") if file.is_file()] == [begun]


@pytest.mark.parametrize(
    "questions",
    [
        ("eval=toy", "eval.limit=4"),
        (f"+eval.texts.corpora.retain.wiki={HELD_OUT}", "eval.texts.documents=3", "eval.forget_tokens=[virus]"),
    ],
)
def test_a_kind_of_query_that_is_asked_later_is_compared_with_the_default_one(short, questions):
    folder = run(short(*questions, "eval.queries=[default]"))
    before = read_metrics(folder)
    assert evaluate_run(RunFolder(folder), ["eval.queries=[control]"]) == folder
    found = read_metrics(folder)
    once = run(short(*questions, "eval.queries=[default,control]"))
    expected = {k: v for k, v in read_metrics(once).items() if not k.startswith("train/")}
    assert any(name.endswith("control/default_difference") for name in expected)
    assert {**before, **expected} == pytest.approx(found, rel=1e-4)
    assert read_run(folder).queries == ["default", "control"]
    records = [json.loads((place / "run.json").read_text()) for place in (folder, once)]
    sets = [asked_of(record, "control") for record in records]
    assert sets[0] == sets[1] != {}


def test_other_questions_are_not_compared(short):
    folder = run(short("eval=toy", "eval.limit=4", "eval.queries=[default]"))
    assert evaluate_run(RunFolder(folder), ["eval.queries=[control]", "eval.num_fewshot=1"]) == folder
    assert "default_difference" not in (folder / "metrics.json").read_text()


def test_new_kinds_of_query_beside_old_ones_are_told_to_be_asked_alone(short, capsys):
    folder = run(short("eval=toy", "eval.limit=2", "eval.queries=[default]"))
    asked_twice = evaluate_run(RunFolder(folder), ["eval.queries=[default,control]"])
    assert asked_twice.parent == folder / "evaluations"
    assert "For them: eval.queries=[control] alone." in capsys.readouterr().err.replace("\n", " ")
    assert read_run(folder).queries == ["default"]
    assert evaluate_run(RunFolder(folder), ["eval.queries=[control]"]) == folder
    assert read_run(folder).queries == ["default", "control"]
    assert len(json.loads((folder / "run.json").read_text())["evaluations"]) == 2


def test_single_keys_change_the_runs_own_evaluation(short):
    """Not the default one, whose questions another model cannot be asked."""
    own_tasks = "+eval.tasks={retain: [toy_retain], forget: [toy_forget_bio]}"
    folder = RunFolder(run(short("eval=toy", "~eval.tasks", own_tasks, "eval.limit=4", "eval.queries=[default]")))
    own = run_config(folder, [])
    assert (own.eval.limit, own.eval.queries) == (4, ["default"])
    assert own.eval.tasks == {"retain": ["toy_retain"], "forget": ["toy_forget_bio"]}
    fewer = run_config(folder, ["eval.limit=null", "eval.subset=3", "+eval.asked_of.default=[retain]"])
    assert fewer.eval == replace(own.eval, limit=None, subset=3, asked_of={"default": ["retain"]})
    assert "near" in run_config(folder, ["eval=toy", "eval.limit=2"]).eval.tasks
    asked = evaluate_run(folder, ["eval.limit=2"]) / "samples" / "unlearned"
    assert sorted(task.name for task in asked.iterdir()) == ["toy_forget_bio", "toy_retain"]


def test_only_the_evaluation_can_be_chosen_anew(short):
    folder = RunFolder(run(short()))
    with pytest.raises(UserError, match=r"rna\.nu=3: of a finished run only eval"):
        evaluate_run(folder, ["eval=toy", "rna.nu=3"])


def test_a_run_whose_base_model_was_moved_is_evaluated_with_its_new_place(short, tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    shutil.copytree(ROOT / "unlearn/toy/model", before)
    folder = RunFolder(run(short(f"model.path={before}", "eval=toy", "eval.limit=2", "eval.queries=[default]")))
    before.rename(now)
    with pytest.raises(UserError, match=r"model\.path=.*before: there is no such folder"):
        evaluate_run(folder, ["eval.queries=[control]"])
    moved = [f"model.path={now}", "model.device=cpu"]
    assert evaluate_run(folder, ["eval.queries=[control]", *moved]) == folder.path
    assert run_config(folder, ["eval=toy_paper", *moved]).model.path == str(now)


def test_a_runs_folder_cannot_have_code_of_a_checkpoint_trusted(short, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    model, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(ROOT / "unlearn/toy/model", model)
    folder = run(short(f"model.path={model}", "eval=toy", "eval.limit=2", "eval.queries=[default]"))
    record = json.loads((folder / "run.json").read_text())
    record["config"]["model"]["trust_remote_code"] = True
    (folder / "run.json").write_text(json.dumps(record))
    config = json.loads((model / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (model / "config.json").write_text(json.dumps(config | own))
    code = f"open({str(ran)!r}, 'w').close()\nfrom transformers import LlamaConfig\n"
    (model / "own.py").write_text(f"{code}class Own(LlamaConfig):\n    model_type = 'own'\n")
    for told in (["evaluate", str(folder), "eval.queries=[control]"], ["export", str(folder), str(tmp_path / "out")]):
        with pytest.raises(SystemExit, match="contains custom code"):
            main(told)
        assert not ran.exists()
    with pytest.raises(SystemExit):  # it runs, and is no class of a language model
        main(["evaluate", str(folder), "eval.queries=[control]", "model.trust_remote_code=true"])
    assert ran.exists()


def test_a_run_of_an_older_version_over_texts_with_words_is_still_the_same(short):
    """Its hash of texts that were not asked as they are was that of the texts with words."""
    texts = (f"+eval.texts.corpora.retain.wiki={HELD_OUT}", "eval.texts.documents=3", "eval.forget_tokens=[virus]")
    config = short(*texts, "eval.queries=[control]")
    folder = run(config)
    record = json.loads((folder / "run.json").read_text())
    inputs = {k: v for k, v in record["inputs"].items() if k not in ("plain_texts", "checkpoint", "dtype")}
    (folder / "run.json").write_text(json.dumps(record | {"inputs": inputs | {"texts": {"retain_text_wiki": "old"}}}))
    written = (folder / "metrics.json").stat().st_mtime
    assert run(config) == folder
    assert (folder / "metrics.json").stat().st_mtime == written


def test_the_command(short, capsys):
    main(["evaluate", str(run(short())), "eval=toy", "eval.limit=2", "eval.queries=[default]"])
    assert "toy_forget_bio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "RUN", "eval=toyy"], "eval=toyy: no such option. Did you mean 'toy'?"),
        (["evaluate", "RUN", "eval=none"], "eval.tasks and eval.texts are empty"),
        (["evaluate", "RUN", "eval.limit=2"], "eval.tasks and eval.texts are empty"),  # the run has no evaluation
        (["evaluate", "RUN"], "eval.tasks and eval.texts are empty"),
        (["evaluate", "RUN", "eval.limt=2"], "eval.limt: unknown key. Did you mean 'eval.limit'?"),
        (["evaluate", "RUN", "eval.limit=2,3"], "eval.limit=2,3: one value is needed here."),
        (["evaluate", "RUN", "evals.limit=2"], "evals.limit=2: of a finished run only eval"),
        (["evaluate", "RUN", "model.layer=3"], "only eval, its keys, and model.path, model.gguf_file"),
        (["evaluate", "/nowhere", "eval=toy"], "/nowhere: no run and no checkpoint is there"),
        (["evaluate", "outputs/runs/nope", "eval=toy"], "outputs/runs/nope: no run and no checkpoint is there"),
        (["evaluate", "tests/nope", "eval=toy"], "tests/nope: no run and no checkpoint is there"),
        (["evaluate", "RUN", "+model.max_memory.cpu=1GiB"], "model.max_memory needs model.device=balanced"),
        (["evaluate", "./lr=1", "eval=toy"], "./lr=1: no run and no checkpoint is there"),
        (["attack", "./lr=1"], "./lr=1: no run is there."),
        (["compare", "RUN", "/nowhere"], "no run is here"),
        (["prefetch", "rna.nu=-1"], "rna.nu=-1 is not allowed"),
        (["prefetch", "rna.nuu=1"], "rna.nuu: unknown key. Did you mean 'rna.nu'?"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(short, arguments, told):
    given = [str(run(short())) if argument == "RUN" else argument for argument in arguments]
    with pytest.raises(SystemExit, match=r"^Error: [^\n]*$") as stop:
        main(given)
    assert told in str(stop.value)


def test_two_runs_are_compared(short, capsys):
    main(["compare", *(str(run(short("eval=toy", "eval.limit=4", f"seed={seed}"))) for seed in (0, 1))])
    assert "McNemar" in capsys.readouterr().err


def test_a_checkpoint_is_evaluated_as_the_base_model(tmp_path, capsys):
    model = str(ROOT / "unlearn/toy/model")
    folder = evaluate_checkpoint([f"model.path={model}", "eval=toy", "eval.limit=3", f"output_root={tmp_path}"])
    metrics = read_metrics(folder)
    assert metrics["base/toy_retain/default/acc"] == 1
    assert "100.0 ± 0.0" in capsys.readouterr().err
    assert not any(name.startswith("unlearned") for name in metrics)
    more = evaluate_checkpoint([f"model.path={model}", "eval=toy", "eval.limit=4", f"output_root={tmp_path}"])
    assert more != folder
    assert read_metrics(folder) == metrics


@pytest.mark.parametrize("name", ["lr=1", "ck,1", "it's [2]"])
def test_a_checkpoint_of_any_name_is_evaluated(tmp_path, monkeypatch, name):
    shutil.copytree(ROOT / "unlearn/toy/model", tmp_path / "a" / name)
    asked = ("eval=toy", "eval.limit=2", "eval.queries=[default]")
    monkeypatch.chdir(tmp_path / "a")  # where "lr=1" could be a key and its value
    for number, what in enumerate((name, f"../a/{name}")):
        main(["evaluate", what, *asked, f"output_root={tmp_path / str(number)}"])
        [metrics] = tmp_path.glob(f"{number}/evaluations/*/metrics.json")
        assert metrics.parent.name.startswith(f"{name}-toy-")
        assert json.loads(metrics.read_text())["base/toy_retain/default/acc"] == 1


def test_the_base_models_answers_are_computed_once(short, monkeypatch):
    asked = []
    real = harness.evaluate
    monkeypatch.setattr(
        "unlearn.evaluate.evaluator.evaluate", lambda *a, label, **k: asked.append(label) or real(*a, label=label, **k)
    )
    jobs = ("eval=toy_paper", "~eval.asked_of", "eval.limit=2", "eval.ngrams.documents=2")  # every role, every query
    folders = [run(short(*jobs, f"seed={seed}")) for seed in (0, 1)]
    assert asked == ["unlearned", "base", "unlearned"]
    base = [{name: value for name, value in read_metrics(f).items() if name.startswith("base/")} for f in folders]
    assert base[0] == base[1]
    assert len(base[0]) > 100
    for file in (folders[0] / "samples/base").rglob("*.*"):
        assert (folders[1] / file.relative_to(folders[0])).read_bytes() == file.read_bytes()
    run(short(*jobs, "eval.seed=1"))  # other questions
    assert asked[3:] == ["unlearned", "base"]


def test_the_whole_of_the_papers_evaluation_leaves_every_metric(short):
    folder = run(short("eval=toy_paper", "eval.limit=2", "eval.ngrams.documents=2"))
    metrics = read_metrics(folder)
    queries = [
        "default", "perturbed", "control", "similarity-most", "similarity-least", "similarity-mean",
        "ngram-2", "ngram-4", "ngram-8", "ngram-16",
    ]  # fmt: skip
    for model in ("base", "unlearned"):
        for query in queries:
            assert f"{model}/toy_retain/{query}/acc" in metrics
        assert {f"{model}/toy_retain/perturbed/maxlogit_{m}" for m in ("mean", "std", "p05", "p50", "p95")} <= set(
            metrics
        )
        assert (folder / f"samples/{model}/toy_retain/perturbed.maxlogit.parquet").is_file()


def test_prefetch_asks_for_no_device_and_no_memory(short, monkeypatch):
    """It runs on a login node."""
    monkeypatch.setattr("unlearn.runs.inputs.all_memory", lambda device: 1000)
    gpu = short("eval=toy", "model.device=cuda")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="there is no such device here"):
            run(gpu)
    with pytest.raises(UserError, match="eval: the whole model takes"):
        run(short("eval=toy"))
    prefetch(gpu)


@pytest.mark.parametrize(
    ("there", "weights"), [(["model.safetensors", "a.bin"], "*.safetensors"), (["a.bin"], "*.bin")]
)
def test_prefetch_fetches_weights_in_one_format(short, monkeypatch, there, weights):
    """No hub is at hand: what it would be asked for is looked at."""
    wanted = []
    monkeypatch.setattr("unlearn.runs.prefetch.list_repo_files", lambda path, revision: there)
    monkeypatch.setattr(
        "unlearn.runs.prefetch.snapshot_download", lambda path, revision, allow_patterns: wanted.append(allow_patterns)
    )
    with pytest.raises(UserError, match=r"model\.path=owner/name: cannot read"):
        prefetch(short("model.path=owner/name"))
    [patterns] = wanted
    assert [p for p in patterns if fnmatch("model.safetensors", p) or fnmatch("pytorch_model.bin", p)] == [weights]


def test_prefetch_checks_what_a_job_needs(short, tmp_path, capsys):
    prefetch(short("eval=toy"))
    told = capsys.readouterr().err
    assert "topic bio: 8 documents to forget, 8 to retain" in told or "topic bio:" in told
    assert "perturbed queries: 2016 questions" in told or "perturbed queries:" in told
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((ROOT / "unlearn/toy/model" / name).read_bytes())
    with pytest.raises(UserError, match=r"weight files are missing: model\.safetensors"):
        prefetch(short(f"model.path={model}"))
    with pytest.raises(UserError, match=r"weight files are missing: model\.safetensors"):
        run(short(f"model.path={model}"))
