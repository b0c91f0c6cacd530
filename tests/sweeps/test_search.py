"""A search by Optuna: its space, what trials are judged by, and that what is killed or fails changes nothing else."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tests.conftest import ROOT
from unlearn.errors import UserError
from unlearn.records.scores import Score, why_not_finite
from unlearn.sweeps.search import table
from unlearn.sweeps.search.best import best_as_yaml
from unlearn.sweeps.search.figures import FIGURES, mean_or_worst, measured, says_not_finite, violation
from unlearn.sweeps.search.library import optuna as library
from unlearn.sweeps.search.settings import SearchSettings
from unlearn.sweeps.search.space import Space
from unlearn.sweeps.search.study import ABOUT, Outcome, Search, front, open_study, read_study

SPACE = ("method=rmu", "rna.nu=interval(0,4)", "train.lr=tag(log,interval(1e-4,1e-2))", "method.c=2,3,5")
OBJECTIVES = {"forget_text": "max", "forget_token_cost": "min"}
DEFAULT = {"trials": 10, "generation": 4, "sampler": "tpe", "sampler_seed": 0, "seeds": [0], "of": "mean"}


def space(*overrides):
    return Space.of(OverridesParser.create().parse_overrides(list(overrides)))


def settings(**changes):
    return SearchSettings.read({**DEFAULT, "objectives": OBJECTIVES, "bounds": {"retain_text": 0.5}, **changes})


def made_up(jobs):
    """Figures of jobs as if they had been trained: more forgetting costs more, and noise lowers the cost."""
    outcomes = {}
    for number, overrides in jobs.items():
        values = dict(override.split("=", 1) for override in overrides)
        nu, lr, c = (float(values[key]) for key in ("rna.nu", "train.lr", "method.c"))
        strength = c * (4 + math.log10(lr)) + float(values["seed"]) / 10
        figures = {"forget_text": strength, "forget_token_cost": strength / (1 + nu), "retain_text": strength * nu / 10}
        outcomes[number] = Outcome(f"runs/{number}", figures)
    return outcomes


def search(folder, run=made_up, **changes):
    given = settings(**changes)
    study = open_study(folder, given)
    study.set_user_attr(ABOUT, {"fixed": ["method=rmu"], "settings": given.model_dump()})
    return Search(space(*SPACE), given, study, run)


def trials(folder):
    """What a study knows of its trials, but for times."""
    return [(t.number, t.state, t.params, t.values, t.constraints) for t in read_study(folder).get_trials()]


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        ("rna.nu=interval(0,4)", FloatDistribution(0, 4)),
        ("train.steps=int(interval(100,500))", IntDistribution(100, 500)),
        ("train.lr=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("train.steps=tag(log,int(interval(10,500)))", IntDistribution(10, 500, log=True)),
        ("model.layer=range(2,9,3)", IntDistribution(2, 8, step=3)),  # a range has no end
        ("rna.nu=range(0.0,1.0,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("method=rmu,rsv", CategoricalDistribution(["rmu", "rsv"])),
        ("method.c=choice(2,3.5)", CategoricalDistribution(["2", "3.5"])),
        ("+a.b=[1,2],null", CategoricalDistribution(["[1,2]", "null"])),
    ],
)
def test_hydras_grammar_as_distributions(override, distribution):
    key = override.partition("=")[0]
    made = space("seed=3", override, "eval.limit=2")
    assert made.distributions == {key: distribution}
    assert made.fixed == ["seed=3", "eval.limit=2"]
    assert made.overrides({key: "X"}) == ["seed=3", "eval.limit=2", f"{key}=X"]


def test_the_last_override_of_a_key_counts():
    made = space("rna.nu=interval(0,4)", "method.c=2,3", "rna.nu=0.5")
    assert (list(made.distributions), made.fixed) == (["method.c"], ["rna.nu=0.5"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rna.nu=1"], "A search needs a key with several values"),
        (["rna.nu=interval(2,1)"], r"rna.nu=interval\(2,1\): `low <= high` must hold"),
        (["rna.nu=tag(log,interval(0,1))"], "`low > 0` must hold"),
        (["rna.nu=tag(fine,interval(0,1))"], "unknown tag fine"),
        (["rna.nu=tag(log,range(1,4))"], "only an interval can be logarithmic"),
        (["rna.nu=shuffle(1,2)"], r"needs no shuffle\(\)"),
        (["seed=1,2"], "seed cannot be searched: search.seeds"),
        (["eval.limit=1,2"], "eval.limit cannot be searched: all trials"),
        (["eval=toy,none"], "eval cannot be searched"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(overrides, told):
    with pytest.raises(UserError, match=told):
        space(*overrides)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sampler": "gp"}, "search.sampler: Input should be 'tpe', 'nsga2' or 'random'"),
        ({"trials": 0}, "search.trials: "),
        ({"trails": 3}, "search.trails: "),
        ({"seeds": [1, 1]}, "a seed is there twice"),
        ({"objectives": {}}, "search.objectives: "),
        ({"objectives": {"forget_text": "up"}}, "search.objectives.forget_text: "),
        ({"objectives": {"forget": "max"}}, "search.objectives: forget is unknown.* Allowed: forget_text, retain_text"),
        ({"bounds": {"retain_txt": 1}}, "search.bounds: retain_txt is unknown. Did you mean 'retain_text'"),
    ],
)
def test_wrong_settings_are_refused(changes, told):
    with pytest.raises(UserError, match=told):
        settings(**changes)


def test_the_evaluation_says_which_figures_there_are(conf):
    toy, real = conf("eval=toy"), conf("eval=real")
    assert measured(toy) == ["forget_accuracy", "retain_accuracy", "perturbed_accuracy"]
    assert measured(real) == ["forget_text", "retain_text", "forget_token_cost"]
    assert measured(conf("eval=toy", "eval.queries=[default]")) == ["forget_accuracy", "retain_accuracy"]
    with pytest.raises(UserError, match=r"does not measure forget_text\. It measures: forget_accuracy"):
        settings().completed(toy)
    of_questions = settings(objectives=None, bounds=None, seeds=None).completed(toy)
    assert of_questions.objectives == {"forget_accuracy": "min", "perturbed_accuracy": "max"}
    assert (of_questions.bounds, of_questions.seeds) == (
        {"retain_accuracy": -5.0, "forget_accuracy": -20.0},
        [0],
    )
    assert settings(objectives=None, bounds=None).completed(real).bounds == {
        "retain_text": 0.05,
        "forget_text": 1.0,
    }
    assert settings(objectives=None, bounds={}).completed(real).bounds == {}
    with pytest.raises(UserError, match="eval=none measures nothing"):
        settings(objectives=None).completed(conf("eval=none"))


def test_figures_are_the_unlearned_models_less_the_base_models():
    def score(model, role, query, measure, value, task="t"):
        return Score(model, role, task, None, query, measure, value)

    scores = [
        score("base", "retain_text", "default", "nats", 3.0),
        score("base", "retain_text", "perturbed", "nats", 3.25),
        score("unlearned", "retain_text", "default", "nats", 3.5),
        score("unlearned", "retain_text", "perturbed", "nats", 5.75),
        score("base", "retain", "perturbed", "acc", 0.75, "a"),
        score("base", "retain", "perturbed", "acc", 0.25, "b"),
        score("unlearned", "retain", "perturbed", "acc", 0.5, "a"),
        score("unlearned", "retain", "perturbed", "acc", 0.25, "b"),
        score("unlearned", "forget", "default", "acc", 0.25),
    ]
    figures = {name: figure.of(scores) for name, figure in FIGURES.items()}
    assert figures == {
        "forget_text": None, "retain_text": 0.5, "forget_token_cost": 2.0, "forget_accuracy": None,
        "retain_accuracy": None, "perturbed_accuracy": -12.5,
    }  # fmt: skip


def test_bounds_hold_in_the_good_direction_and_the_worst_seed_is_the_worst():
    assert violation("retain_text", 0.25, 0.5) == -0.25
    assert violation("retain_accuracy", -8, -5) == 3
    values = {"retain_text": [0.25, 0.75], "forget_text": [2.0, 4.0]}
    assert mean_or_worst(values, "mean") == {"retain_text": 0.5, "forget_text": 3.0}
    assert mean_or_worst(values, "worst") == {"retain_text": 0.75, "forget_text": 2.0}


def test_what_training_and_evaluation_say_of_numbers_that_are_not_finite_is_recognised():
    counted = Score("unlearned", "forget", "t", None, "default", "not_finite", 2, n=4)
    assert says_not_finite(why_not_finite([counted]))
    for what in ("the loss became nan", "the loss became inf", "the gradient's norm became -inf"):
        assert says_not_finite(f"{what} at step 3, topic bio (forget loss 1, retain loss 2).")
    assert not says_not_finite("OutOfMemoryError: CUDA is out of memory")


def test_without_optuna_the_command_that_installs_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'unlearn-rna\[search\]'"):
        library()


def test_generations_are_asked_at_once_and_more_trials_go_on_from_there(tmp_path):
    asked = []

    def run(jobs):
        asked.append(sorted(jobs))
        return made_up(jobs)

    search(tmp_path, run, trials=8).go_on()
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7]]
    search(tmp_path, run, trials=8).go_on()
    assert len(asked) == 2
    before = trials(tmp_path)
    search(tmp_path, run, trials=10).go_on()
    assert asked[2:] == [[8, 9]]
    assert trials(tmp_path)[:8] == before


def test_a_trial_has_a_job_for_each_seed(tmp_path):
    jobs = {}

    def run(asked):
        jobs.update(asked)
        return made_up(asked)

    search(tmp_path, run, trials=2, generation=2, seeds=[4, 7], of="worst").go_on()
    assert sorted(jobs) == [0, 1, 2, 3]
    assert [job[-1] for job in jobs.values()] == ["seed=4", "seed=7"] * 2
    assert jobs[2][:-1] == jobs[3][:-1] != jobs[0][:-1]
    figures = made_up(jobs)
    for trial in read_study(tmp_path).get_trials():
        both = [figures[2 * trial.number + i].figures for i in range(2)]
        assert trial.values == [min(f["forget_text"] for f in both), max(f["forget_token_cost"] for f in both)]


class Killed(BaseException):
    """What ends a process: nothing after it is done."""


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_search_killed_at_any_moment_resumes_to_the_same_trials(sampler, tmp_path, monkeypatch):
    write = optuna.storages.journal.JournalFileBackend.append_logs
    left, writes = math.inf, []

    def append(self, logs):
        nonlocal left
        writes.append(str(logs))
        left -= 1
        if left < 0:
            raise Killed
        write(self, logs)

    def wait(_seconds):
        raise AssertionError("It waits for the lock of a process that was killed.")

    monkeypatch.setattr(optuna.storages.journal.JournalFileBackend, "append_logs", append)
    monkeypatch.setattr("optuna.storages.journal._file.time.sleep", wait)
    # TPE draws its first ten at random. In generations of three, the order of NSGA-II's parents changed no trial.
    few = {"sampler": sampler, "trials": 14, "generation": 4}
    search(tmp_path / "whole", **few).go_on()
    whole = trials(tmp_path / "whole")
    chosen = [n + 1 for n, logs in enumerate(writes) if "parent" in logs]  # NSGA-II has just chosen parents
    for moment in {*random.Random(2026).sample(range(2, len(writes)), 9), *chosen}:
        folder, left = tmp_path / str(moment), moment
        with pytest.raises(Killed):
            search(folder, **few).go_on()
        (folder / "search.log.lock").symlink_to("search.log")  # as a process leaves it that is killed while it writes
        left = math.inf
        search(folder, **few).go_on()
        assert trials(folder) == whole


FAILED, NOT_FINITE = "OutOfMemoryError: no memory", "the loss became nan at step 3"


def failing(errors):
    """`made_up` in which trials fail; {number: error}."""

    def run(jobs):
        outcomes = made_up(jobs)
        return {n: Outcome(error=errors[n]) if n in errors else outcome for n, outcome in outcomes.items()}

    return run


@given(st.dictionaries(st.integers(1, 9), st.sampled_from([FAILED, NOT_FINITE])))
@effort(max_examples=15, deadline=None)
def test_whatever_trials_fail_the_others_are_as_without_them(tmp_path_factory, errors):
    folder = tmp_path_factory.mktemp("search")
    search(folder / "all", sampler="random").go_on()
    search(folder / "some", failing(errors), sampler="random").go_on()
    for (number, state, *others), (_, _, *expected) in zip(
        trials(folder / "some"), trials(folder / "all"), strict=True
    ):
        if number in errors:
            assert state is (TrialState.PRUNED if errors[number] == NOT_FINITE else TrialState.FAIL)
            assert read_study(folder / "some").get_trials()[number].user_attrs["error"] == errors[number]
        else:
            assert (state, others) == (TrialState.COMPLETE, expected)


@given(st.sets(st.integers(0, 7), max_size=7))
@effort(max_examples=10, deadline=None)
def test_what_the_sampler_asks_next_does_not_depend_on_failed_trials(tmp_path_factory, numbers):
    """As in a study that knows nothing of them but that they were."""
    folder = tmp_path_factory.mktemp("search")
    search(folder, failing(dict.fromkeys(numbers, FAILED)), generation=8, trials=8).go_on()
    ignorant = optuna.create_study(directions=["maximize", "minimize"])
    for trial in read_study(folder).get_trials():
        nothing = optuna.trial.create_trial(state=TrialState.FAIL)
        ignorant.add_trial(nothing if trial.number in numbers else trial)
    going_on = search(folder, generation=2, trials=10)
    going_on.go_on()
    asked = [Search(going_on.space, going_on.settings, ignorant, made_up)._ask(number) for number in (8, 9)]
    assert [trial.params for trial in asked] == [params for _, _, params, *_ in trials(folder)[8:]]


def test_a_search_in_which_everything_fails_stops_and_tries_the_same_again(tmp_path):
    with pytest.raises(UserError, match=r"All trials, 0 to 3, failed\. .*The first: OutOfMemoryError"):
        search(tmp_path, failing(dict.fromkeys(range(4), FAILED))).go_on()
    search(tmp_path).go_on()
    search(tmp_path / "other").go_on()
    assert trials(tmp_path) == trials(tmp_path / "other")


def test_the_front_keeps_the_bounds_and_no_trial_beats_another(tmp_path, capsys):
    search(tmp_path, trials=20, bounds={"retain_text": 0.2}).go_on()
    study = read_study(tmp_path)
    shown = front(study)
    kept = [t for t in study.get_trials() if t.user_attrs["figures"]["retain_text"] <= 0.2]
    assert 0 < len(shown) < len(kept) < 20
    for trial in shown:
        better = [t for t in kept if t.values[0] >= trial.values[0] and t.values[1] <= trial.values[1]]
        assert all(t.values == trial.values for t in better)
    table.show_front(study, commands=True)
    printed = capsys.readouterr().out
    assert "Trials: 20 complete" in printed
    assert "broken" not in printed
    for trial in shown:
        values = " ".join(f"{key}={value}" for key, value in trial.params.items())
        assert f"#{trial.number}: python launch.py method=rmu {values} seed=0" in printed


def test_where_no_trial_keeps_the_bounds_the_nearest_is_shown(tmp_path, capsys):
    search(tmp_path, bounds={"retain_text": -1, "forget_text": 100}).go_on()
    study = read_study(tmp_path)
    nearest = min(study.get_trials(), key=lambda trial: sum(trial.constraints.values()))
    table.show_front(study)
    printed = capsys.readouterr().out
    assert "No trial keeps the bounds yet" in printed
    assert f" #{nearest.number} " in printed
    assert printed.count("(broken)") == 2


def test_the_best_point_is_a_file_for_conf_model_with_how_it_was_found(tmp_path):
    made = search(tmp_path)
    about = {**made.study.user_attrs[ABOUT], "command": "COMMAND", "model": "toy", "method": "rmu", "eval": "toy"}
    about["fixed"] = ["method=rmu", "model.layer=4", "loss.alpha=20"]
    made.study.set_user_attr(ABOUT, about)
    made.go_on()
    kept = [t for t in read_study(tmp_path).get_trials() if t.user_attrs["figures"]["forget_token_cost"] < 2]
    trial = max((t for t in kept if t.constraints["retain_text"] <= 0), key=lambda t: t.values[0])
    written = best_as_yaml(tmp_path, ["forget_token_cost<2"])
    assert f"# Trial {trial.number} of a search with 10 trials" in written
    assert "#   COMMAND" in written
    values = yaml.safe_load(written)
    assert values["defaults"] == ["toy", "_self_"]
    nu, lr, c = (trial.params[key] for key in ("rna.nu", "train.lr", "method.c"))
    assert values["methods"] == {"rmu": {"alpha": 20, "nu": nu, "lr": lr, "c": float(c)}}
    assert values["layer"] == 4
    for condition, told in (
        ("retain_text=1", "cannot be read"),
        ("retain<1", "retain is unknown"),
        ("forget_accuracy<1", "did not measure forget_accuracy"),
        ("retain_text<-9", "None of 10 complete trials keeps the bounds and --where"),
    ):
        with pytest.raises(UserError, match=told):
            best_as_yaml(tmp_path, [condition])
    with pytest.raises(UserError, match="this is no search's folder"):
        best_as_yaml(tmp_path / "none")


def arguments(tmp_path, *overrides):
    job = ("method=adaptive_rmu", "train.steps=4", "eval.limit=4", "tracker=none", f"output_root={tmp_path}")
    command = [sys.executable, "launch.py", "-m", "hydra/sweeper=search", "hydra/launcher=packed", *job]
    return [*command, "search=toy", "search.trials=4", "search.generation=2", *overrides]


def test_a_figure_that_is_not_measured_is_told_before_anything_is_run(tmp_path):
    done = subprocess.run(
        arguments(tmp_path, "search.bounds={retain_text:0.1}"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    told = "search.bounds: eval=toy does not measure retain_text. It measures: forget_accuracy, retain_accuracy,"
    assert done.stderr.startswith(told)
    assert not list(tmp_path.iterdir())


def attempt(folder, log, moment):
    """Search until so many lines are on the screen, and kill it then. Returns whether it had not ended before."""
    with log.open("w") as out:
        process = subprocess.Popen(
            arguments(folder), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        while log.read_text().count("\n") < moment and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() in (0, -signal.SIGKILL), log.read_text()
    return process.returncode != 0


@pytest.mark.slow  # alone trains a search's points by a launcher, and kills that process at any moment
def test_a_real_search_that_is_killed_again_and_again_ends_with_the_same_trials(tmp_path, pytestconfig):
    """A quarter as often as `--kills` says; the moments are lines of the screen, drawn with a fixed seed."""
    log = tmp_path / "log"
    assert not attempt(tmp_path / "whole", log, math.inf)
    [whole] = (tmp_path / "whole/searches").iterdir()
    lines = log.read_text().count("\n")
    rng, wanted, kills, rounds = random.Random(2026), pytestconfig.getoption("--kills") // 4, 0, 0
    while kills < wanted:
        folder, rounds = tmp_path / f"round{rounds}", rounds + 1
        moments = rng.choices(range(1, lines), k=min(3, wanted - kills))
        kills += sum(attempt(folder, log, moment) for moment in moments)
        assert not attempt(folder, log, math.inf)
        [study] = (folder / "searches").iterdir()
        assert trials(study) == trials(whole)
        assert [job["number"] for job in json.loads((study / "sweep.json").read_text())["jobs"]] == [0, 1, 2, 3]
        assert len(list((folder / "runs").iterdir())) == 4
    print(f"\n{kills} kills in {rounds} searches of {lines} lines")


@pytest.mark.slow  # alone searches in processes of their own, and finds a copy of the code that is another's
def test_a_search_that_goes_on_runs_this_code_and_no_copy_that_differs(tmp_path):
    def go_on(trials):
        command = [
            *arguments(tmp_path),
            "hydra/launcher=local",
            "hydra.launcher.devices=[0]",
            f"search.trials={trials}",
        ]
        without = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        done = subprocess.run(command, cwd=ROOT, env=without, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        [study] = (tmp_path / "searches").iterdir()
        return study

    study = go_on(2)
    with (study / "code/unlearn/__init__.py").open("a") as package:
        package.write("raise SystemExit('the copy ran')\n")
    assert go_on(4) == study
    assert [t.state for t in read_study(study).get_trials()] == [TrialState.COMPLETE] * 4
    assert json.loads((study / "sweep.json").read_text())["code"] == "code-2"
