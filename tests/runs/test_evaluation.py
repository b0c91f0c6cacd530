"""Evaluation without training: of a finished run, of a checkpoint; prefetching; the base model's answers kept."""

import errno
import json
import os
import shutil
import sys
from dataclasses import replace
from fnmatch import fnmatch

import pytest
import torch

from tests.conftest import ROOT, metrics_of, read_metrics
from unlearn.analysis.collect import read_run
from unlearn.analysis.compare import differing_questions
from unlearn.attacks.run import attack
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.evaluation import harness
from unlearn.evaluation.cache import CachedAnswers
from unlearn.evaluation.evaluator import Evaluator
from unlearn.experiment import run
from unlearn.models.export import export
from unlearn.paper.theory.measure import theory
from unlearn.records.answers import Answers
from unlearn.records.ngrams import read_ngrams
from unlearn.records.samples import read_samples
from unlearn.records.scores import Score, read_scores
from unlearn.runs import inputs
from unlearn.runs.evaluation import evaluate_checkpoint, evaluate_run, run_config
from unlearn.runs.folder import RunFolder
from unlearn.runs.prefetch import prefetch
from unlearn.storage.lock import HOLDER, FolderLock

HELD_OUT = ROOT / "unlearn/real/data/wikipedia-heldout.jsonl"


@pytest.fixture(scope="module")
def made(conf, tmp_path_factory):
    """A finished run with this evaluation, that nothing is written into."""

    def make(*evaluation):
        root = tmp_path_factory.mktemp("outputs")
        return run(conf("train.steps=3", "tracker=none", *evaluation, f"output_root={root}"))

    return make


@pytest.fixture(scope="module")
def finished(made):
    return made("eval=none")


@pytest.fixture(scope="module")
def asked(made):
    """Four questions of each task in both kinds of query."""
    return made("eval=toy", "eval.limit=4")


@pytest.fixture(scope="module")
def asked_by_default(made):
    return made("eval=toy", "eval.limit=4", "eval.queries=[default]")


@pytest.fixture
def copied(tmp_path):
    """A copy of a run to write into, beside a copy of the base model's answers."""

    def copy(folder):
        shutil.copytree(folder.parent.parent, tmp_path / "outputs")
        return tmp_path / "outputs/runs" / folder.name

    return copy


def test_a_finished_run_is_evaluated_later_as_it_would_have_been_at_once(finished, asked, copied):
    later, once = copied(finished), asked
    before = {f: f.read_bytes() for f in later.rglob("*") if f.is_file()}
    home = evaluate_run(RunFolder(later), ["eval=toy", "eval.limit=4"])
    assert home.parent == later / "evaluations"
    for name in ("scores.parquet", "samples.parquet"):
        assert (home / name).read_bytes() == (once / name).read_bytes()
    assert all(file.read_bytes() == content for file, content in before.items())
    assert json.loads((home / "evaluation.json").read_text())["config"]["limit"] == 4
    assert read_run(later).scores == read_run(once).scores
    assert read_run(later).samples() == read_run(once).samples()


def test_where_nothing_can_be_written_nothing_is_loaded(conf, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    config = conf("eval=toy", f"output_root={tmp_path / 'file/outputs'}")
    monkeypatch.setattr(inputs, "load_config", lambda _: pytest.fail("it was loaded before"))
    with pytest.raises(UserError, match=r"file/outputs: not writable .* output_root=DIR"):
        inputs.load_evaluation_inputs(config)
    for name in ("evaluations", "attacks"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("")
    monkeypatch.setattr("unlearn.runs.evaluation.run_config", lambda *_, **__: config)
    monkeypatch.setattr("unlearn.attacks.run.run_config", lambda *_, **__: config)
    folder = RunFolder(tmp_path / "run")
    folder.record = {"status": "done"}
    with pytest.raises(UserError, match="run/evaluations: not writable"):
        evaluate_run(folder, [])
    (tmp_path / "run/run.json").write_text('{"status": "done"}')
    with pytest.raises(UserError, match="run/attacks: not writable"):
        attack([tmp_path / "run"], [], [])
    monkeypatch.setattr("unlearn.models.export._source_of", lambda _: None)
    with pytest.raises(UserError, match="file/model: not writable"):
        export(tmp_path / "run", tmp_path / "file/model")
    monkeypatch.setattr("unlearn.storage.files.tempfile.TemporaryFile", read_only)
    monkeypatch.setattr("unlearn.paper.theory.measure._theory", lambda *_: pytest.fail("it was measured before"))
    with pytest.raises(UserError, match="run: not writable"):
        theory(tmp_path / "run")


def read_only(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


def test_what_was_asked_twice_is_read_as_it_was_asked_first(asked, copied):
    folder = copied(asked)
    fewer = evaluate_run(RunFolder(folder), ["eval=toy", "eval.limit=2"])
    assert len([s for s in read_samples(fewer) if s.task == "toy_retain" and s.query == "default"]) == 4  # two models
    other = evaluate_run(RunFolder(folder), ["eval=toy", "eval.limit=2", "eval.seed=1"])
    assert other not in (fewer, folder)
    found = read_run(folder)
    assert [e.folder for e in found.evaluations] == [folder, fewer, other]
    assert found.scores == read_scores(folder)


def test_questions_of_other_settings_or_tasks_do_not_mix_with_a_runs_own(short):
    folder = run(short("eval=toy", "eval.subset=5", "eval.queries=[default,perturbed]"))
    before = read_run(folder)
    shots = evaluate_run(RunFolder(folder), ["eval.queries=[default,control]", "eval.subset=8", "eval.num_fewshot=1"])
    other = "eval.tasks={retain: [toy_near_bio], near: [], forget: []}"
    evaluate_run(RunFolder(folder), [other, "eval.queries=[default]"])
    after = read_run(folder)
    assert after.scores == before.scores
    assert after.samples() == before.samples()
    assert any(score.query == "control" for score in read_scores(shots))


def test_a_later_query_over_more_questions_has_no_difference_from_the_default_one(short):
    folder = run(short("eval=toy", "eval.subset=5", "eval.queries=[default]"))
    home = evaluate_run(RunFolder(folder), ["eval.queries=[perturbed]", "eval.subset=20"])
    assert "default" not in {score.against for score in read_scores(home)}


def test_the_default_query_of_a_later_evaluation_is_compared_with_one_that_comes_after_it(finished, copied):
    folder = copied(finished)
    evaluate_run(RunFolder(folder), ["eval=toy", "eval.limit=3", "eval.queries=[default]"])
    home = evaluate_run(RunFolder(folder), ["eval=toy", "eval.limit=3", "eval.queries=[perturbed]"])
    assert "default" in {score.against for score in read_scores(home)}


def test_maxlogits_of_a_later_evaluation_are_put_beside_a_runs_own_answers(asked_by_default, copied):
    folder = copied(asked_by_default)
    evaluate_run(RunFolder(folder), ["eval.maxlogit={roles: [retain], queries: [default], tokens: 2}"])
    measured = [sample for sample in read_run(folder).samples() if sample.role == "retain"]
    assert all(len(sample.maxlogits) == 2 for sample in measured)


def test_another_evaluation_leaves_what_the_runs_own_had_begun(asked_by_default, copied):
    folder = copied(asked_by_default)
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
    evaluate_run(RunFolder(folder), ["eval.queries=[control]"])
    once = run(short(*questions, "eval.queries=[default,control]"))
    later, at_once = (metrics_of(read_run(path)) for path in (folder, once))
    assert any(name.endswith("control/default_difference") for name in at_once)
    assert later == pytest.approx(at_once, rel=1e-4)
    assert read_run(folder).queries == ["default", "control"]
    assert differing_questions(read_run(folder), read_run(once), "control") is None


def test_other_questions_are_not_compared(asked_by_default, copied):
    folder = copied(asked_by_default)
    home = evaluate_run(RunFolder(folder), ["eval.queries=[control]", "eval.num_fewshot=1"])
    assert "default" not in {score.against for score in read_scores(home)}


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
    home = evaluate_run(folder, ["eval.limit=2"])
    assert {sample.task for sample in read_samples(home)} == {"toy_forget_bio", "toy_retain"}


def test_only_the_evaluation_can_be_chosen_anew(finished):
    with pytest.raises(UserError, match=r"rna\.nu=3 is not allowed: for a finished run only eval"):
        evaluate_run(RunFolder(finished), ["eval=toy", "rna.nu=3"])


def test_a_run_whose_base_model_was_moved_is_evaluated_with_its_new_place(short, tmp_path):
    before, now = tmp_path / "before", tmp_path / "now"
    shutil.copytree(ROOT / "unlearn/toy/model", before)
    folder = RunFolder(run(short(f"model.path={before}", "eval=toy", "eval.limit=2", "eval.queries=[default]")))
    before.rename(now)
    with pytest.raises(UserError, match=r"model\.path=.*before: there is no such folder"):
        evaluate_run(folder, ["eval.queries=[control]"])
    moved = [f"model.path={now}", "model.device=cpu"]
    assert evaluate_run(folder, ["eval.queries=[control]", *moved]).parent == folder.path / "evaluations"
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


@pytest.mark.parametrize("arguments", [["evaluate", "RUN", "eval=toy"], ["attack", "RUN"]])
def test_a_run_of_another_version_of_the_results_is_refused(finished, copied, arguments):
    folder = copied(finished)
    record = json.loads((folder / "run.json").read_text())
    record["identity"]["results_version"] = 2
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="results of version 2, but this package reads version 3"):
        main([str(folder) if argument == "RUN" else argument for argument in arguments])
    assert read_run(folder).status == "corrupt"


def test_the_command(finished, copied, capsys):
    main(["evaluate", str(copied(finished)), "eval=toy", "eval.limit=2", "eval.queries=[default]"])
    assert "toy_forget_bio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluate", "RUN", "eval=toyy"], "eval=toyy: no such option. Did you mean 'toy'?"),
        (["evaluate", "RUN", "eval=none"], "eval.tasks and eval.texts are empty"),
        (["evaluate", "RUN", "eval.limit=2"], "eval.tasks and eval.texts are empty"),  # the run has no evaluation
        (["evaluate", "RUN"], "eval.tasks and eval.texts are empty"),
        (["evaluate", "RUN", "eval.limt=2"], "eval.limt: unknown key. Did you mean 'eval.limit'?"),
        (["evaluate", "RUN", "eval.limit=2,3"], "eval.limit=2,3 is not allowed: give a single value."),
        (["evaluate", "RUN", "evals.limit=2"], "evals.limit=2 is not allowed: for a finished run only eval"),
        (["evaluate", "RUN", "model.layer=3"], "only eval, its keys, and model.path, model.gguf_file"),
        (["evaluate", "/nowhere", "eval=toy"], "/nowhere is neither a folder with a run or a checkpoint"),
        (["evaluate", "outputs/runs/nope", "eval=toy"], "outputs/runs/nope is neither a folder with a run or"),
        (["evaluate", "tests/nope", "eval=toy"], "tests/nope is neither a folder with a run or a checkpoint"),
        (["evaluate", "RUN", "+model.max_memory.cpu=1GiB"], "model.max_memory needs model.device=balanced"),
        (["evaluate", "./lr=1", "eval=toy"], "./lr=1 is neither a folder with a run or a checkpoint"),
        (["attack", "./lr=1"], "./lr=1 is not the folder of a run."),
        (["compare", "RUN", "/nowhere"], "no run is here"),
        (["prefetch", "rna.nu=-1"], "rna.nu=-1 is not allowed"),
        (["prefetch", "rna.nuu=1"], "rna.nuu: unknown key. Did you mean 'rna.nu'?"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(finished, arguments, told):
    given = [str(finished) if argument == "RUN" else argument for argument in arguments]
    with pytest.raises(SystemExit, match=r"^Error: [^\n]*$") as stop:
        main(given)
    assert told in str(stop.value)


def test_two_runs_are_compared(asked, short, capsys):
    main(["compare", str(asked), str(run(short("eval=toy", "eval.limit=4", "seed=1")))])
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
        assert read_metrics(metrics.parent)["base/toy_retain/default/acc"] == 1


def test_answers_of_the_base_model_that_another_process_took_over_are_taken_from_it(tmp_path, monkeypatch):
    made = Answers([Score("base", "retain", "mmlu", None, "default", "acc", 1.0)], [])

    def ask(_evaluator, cached, hold, _report):
        os.utime(hold.place / HOLDER, (0, 0))  # it was not heard
        with FolderLock(cached.folder) as other:
            cached.save(made, other)
        return Answers([], [])

    monkeypatch.setattr(Evaluator, "_ask_base", ask)
    cached = CachedAnswers(tmp_path / "base")
    assert Evaluator._cached_or_asked(object.__new__(Evaluator), cached, print) == made


@pytest.mark.slow  # alone asks every role every query
def test_the_base_models_answers_are_computed_once(short, monkeypatch):
    asked = []
    real = harness.evaluate
    monkeypatch.setattr(
        "unlearn.evaluation.evaluator.evaluate",
        lambda *a, label, **k: asked.append(label) or real(*a, label=label, **k),
    )
    jobs = ("eval=toy_paper", "~eval.asked_of", "eval.limit=2", "eval.ngrams.documents=2")  # every role, every query
    folders = [run(short(*jobs, f"seed={seed}")) for seed in (0, 1)]
    assert asked == ["unlearned", "base", "unlearned"]
    base = [{name: value for name, value in read_metrics(f).items() if name.startswith("base/")} for f in folders]
    assert base[0] == base[1]
    assert len(base[0]) > 100
    samples = [[sample for sample in read_samples(f) if sample.model == "base"] for f in folders]
    assert samples[0] == samples[1] != []
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
    listed = read_ngrams(folder / "ngrams.json")["2"].most
    assert {s.inserted for s in read_samples(folder) if s.query == "similarity-most"} <= {n.ngram for n in listed}
    measured = {(s.role, s.query) for s in read_samples(folder) if s.maxlogits}
    assert ("retain", "perturbed") in measured


@pytest.mark.slow  # alone prefetches for a machine with another device
def test_prefetch_asks_for_no_device_and_no_memory(short, monkeypatch):
    """It runs on a login node."""
    monkeypatch.setattr("unlearn.runs.inputs.all_memory", lambda device: 1000)
    gpu = short("eval=toy", "model.device=cuda")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="this machine has no such device"):
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
    monkeypatch.setattr("unlearn.runs.prefetch.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("unlearn.runs.prefetch.list_repo_files", lambda path, revision: there)
    monkeypatch.setattr(
        "unlearn.runs.prefetch.snapshot_download", lambda path, revision, allow_patterns: wanted.append(allow_patterns)
    )
    with pytest.raises(UserError, match=r"model\.path=owner/name: cannot read"):
        prefetch(short("model.path=owner/name"))
    [patterns] = wanted
    assert [p for p in patterns if fnmatch("model.safetensors", p) or fnmatch("pytorch_model.bin", p)] == [weights]


@pytest.mark.slow  # alone prefetches all that a job needs
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
