"""`rna.nu=auto`: which nu made-up trials choose, what is refused before anything is trained, and a run as a whole."""

import json
import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
from omegaconf import OmegaConf

from tests.analysis.made_up import made_up_run
from tests.conftest import ROOT
from unlearn.analysis.collect import collect
from unlearn.config.compose import changed, composed
from unlearn.config.identity import identity, run_folder
from unlearn.config.settle import settle
from unlearn.errors import UserError
from unlearn.sweeps import auto_nu
from unlearn.sweeps.auto_nu import QUESTIONS, TEXTS, Rule, Trial, find_nu
from unlearn.sweeps.launchers import settle_with_nu

RULE = Rule(TEXTS, forgetting_lost=0.05, retained_lost=0.05)


@cache  # Hydra takes long
def of_files(*chosen):
    return composed(list(chosen))


def raw_with(*overrides):
    """What Hydra composes of these overrides and `rna.nu=auto`."""
    chosen = [override for override in overrides if override.partition("=")[0] in ("rna", "eval", "method")]
    raw = deepcopy(of_files(*chosen))
    changed(raw, ["rna.nu=auto", *(override for override in overrides if override not in chosen)])
    return raw


def trial(nu, forgotten, cost, retained=0.0):
    return Trial(nu, {"forget_text": forgotten, "forget_token_cost": cost, "retain_text": retained})


@pytest.mark.parametrize(
    ("others", "nu"),
    [
        ([trial(1, 3.9, 1.5), trial(2, 3.8, 1.0), trial(4, 3.7, 0.1)], 2),  # 3.8 is 95 % of 4, 3.7 is less
        ([trial(1, 4.5, 1.5), trial(2, 4.0, 1.0, retained=0.06)], 1),  # the other one loses too much
        ([trial(1, 4.0, 1.5), trial(2, 4.0, 1.5)], 1),  # of equal ones, the smaller nu
        ([trial(1, 3.0, 1.0), trial(2, 4.0, 2.5)], 0),  # one forgets too little, one costs more
        ([Trial(1, error="loss became nan"), trial(2, 4.0, 1.9)], 2),
        ([Trial(1, error="loss became nan"), Trial(2, error="killed")], 0),
    ],
)
def test_the_lowest_cost_within_the_bounds_is_chosen(others, nu):
    assert RULE.choose([trial(0, 4.0, 2.0), *others]).nu == nu


def test_of_questions_accuracies_count():
    def asked(nu, forget, retain, perturbed):
        return Trial(nu, {"forget_accuracy": forget, "retain_accuracy": retain, "perturbed_accuracy": perturbed})

    rule = Rule(QUESTIONS, forgetting_lost=0.05, retained_lost=5)
    trials = [asked(0, -70, -1, -20), asked(1, -67, -2, -10), asked(2, -66, 0, -5), asked(4, -80, -7, -2)]
    assert rule.choose(trials).nu == 1
    assert [rule.why_not(one, trials[0]) for one in trials] == [
        *("", "", "forgets less than 95 %", "loses over 5 points more of what is retained")
    ]


def test_the_bounds_are_keys():
    trials = [trial(0, 4.0, 2.0, retained=0.3), trial(1, 3.0, 1.0, retained=0.36)]
    assert RULE.choose(trials).nu == 0
    assert replace(RULE, forgetting_lost=0.25, retained_lost=0.1).choose(trials).nu == 1


def test_without_a_trial_without_noise_nothing_is_chosen():
    with pytest.raises(UserError, match="the trial with nu=0, with which others are compared, failed: killed"):
        RULE.choose([Trial(0, error="killed"), trial(1, 4, 1)])
    with pytest.raises(UserError, match=r"forgotten nothing \(forget_text -0\.1\).*rna\.auto\.steps"):
        RULE.choose([trial(0, -0.1, 1), trial(1, 4, 1)])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["rna=none"], "rna=none is without noise"),
        (["eval=none"], "but eval=none measures nothing"),
        (["eval.queries=[default]"], "eval=toy measures forget_accuracy, retain_accuracy\\. Choose"),
        (["+eval.asked_of.perturbed=[near]"], "eval=toy measures forget_accuracy, retain_accuracy\\. Choose"),
        (["method=npo"], "model 'toy' has no nu above 0 for method 'npo'.*rna.auto.around=NUMBER"),
        (["rna.where=gradient"], "not for rna.where=gradient, a placebo"),
        (["seed=1000"], "rna.auto.seed=1000 is the seed of the run itself"),
        (["eval.questions=choosing"], "these questions choose nu"),
        (["rna.auto.forgetting_lost=1.5"], "rna.auto.forgetting_lost: "),
        (["+rna.auto.step=5"], "rna.auto.step: "),
        (["rna.auto.steps=600"], "data.topics.bio.forget"),
        (["eval.include_path=/none"], "eval.include_path=/none"),
        (["method.c=-1"], "method.c"),
    ],
)
def test_what_cannot_be_found_is_refused_before_anything_is_trained(overrides, told, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_nu, "_run", lambda *_: pytest.fail("trained"))
    raw = raw_with(f"output_root={tmp_path}", *overrides)
    with pytest.raises(UserError, match=told):
        find_nu(raw)
    assert not (tmp_path / "auto_nu").exists()


def test_where_no_trials_can_be_run_a_number_is_asked_for():
    with pytest.raises(UserError, match=r"rna\.nu=auto .*SLURM .* search .*: give a number there"):
        settle(raw_with())


def test_jobs_for_slurm_are_refused(tmp_path):
    command = [sys.executable, "launch.py", "-m", "hydra.launcher.dry_run=true", "rna.nu=auto,0.5", "tracker=none"]
    done = subprocess.run([*command, f"output_root={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "1 of 2 jobs failed:\n  #0 rna.nu=auto: rna.nu=auto trains its trials where the command" in done.stderr
    assert "Dry run: 1 SLURM jobs" in done.stdout
    assert not (tmp_path / "auto_nu").exists()


def found(tmp_path, monkeypatch, *overrides, cost=lambda nu: 20 / (1 + nu)):
    """The run's configuration, and those of its trials, whose cost of a forget-token is a function of nu."""
    trials = []

    def run(configs, judges, _folder):
        trials.extend(configs)
        values = (4.0, 0.0, 1.0) if judges is TEXTS else (-70.0, 0.0, -1.0)
        return [
            Trial(nu, dict(zip(judges.names, (*values[:2], values[2] * cost(nu)), strict=True)))
            for nu in (config.rna.nu for config in configs)
        ]

    monkeypatch.setattr(auto_nu, "_run", run)
    return settle_with_nu(raw_with(f"output_root={tmp_path}", *overrides)), trials


def test_the_run_is_that_of_the_number_and_keeps_how_it_was_found(tmp_path, monkeypatch, capsys):
    config, _ = found(tmp_path, monkeypatch, "method=rsv", cost=lambda nu: abs(nu - 2))
    plain = settle(raw_with("method=rsv", "rna.nu=2", "eval.questions=judging", f"output_root={tmp_path}"))
    assert run_folder(config) == run_folder(plain)
    assert replace(config, nu_found=None) == plain
    tried = config.nu_found["trials"]
    assert [each["nu"] for each in tried] == [0, 0.0625, 0.125, 0.25, 0.5, 1, 2, 4]
    assert tried[-1]["perturbed_accuracy"] == -2
    assert config.nu_found["settings"]["forgetting_lost"] == 0.05
    told = capsys.readouterr().err
    assert [line.split()[0] for line in told.splitlines() if line.rstrip().endswith(" chosen")] == ["2"]
    assert "rna.nu=2\neval.questions=judging: the run is judged without what has chosen" in told


def test_where_no_noise_costs_less_nu_is_0(tmp_path, monkeypatch, capsys):
    config, _ = found(tmp_path, monkeypatch, cost=lambda nu: nu)
    assert config.rna.nu == 0
    assert "rna.nu=0: no noise lowers the cost of a forget-token within the bounds" in capsys.readouterr().err


def test_trials_are_asked_the_questions_that_do_not_judge(tmp_path, monkeypatch):
    config, [*trials] = found(tmp_path, monkeypatch, "attacks=[lens]", "eval.subset=50", "train.force=true")
    one = trials[3]
    assert (one.train.steps, config.train.steps) == (500, 500)
    assert (one.seed, one.tracker.name, one.attacks, one.train.force) == (1000, "none", [], False)
    assert (one.eval.questions, config.eval.questions) == ("choosing", "judging")
    assert (one.eval.subset, config.eval.subset) == (300, 50)
    assert list(one.eval.tasks) == ["forget", "retain"]
    assert one.output_root == str(tmp_path / "auto_nu")
    assert identity(settle(OmegaConf.structured(one))) == identity(one)  # as a job of a sweep


@pytest.mark.parametrize(("skip", "chosen"), [(0, 20), (12, 12)])
def test_texts_before_those_that_judge_choose(skip, chosen, tmp_path, monkeypatch):
    config, [one, *_] = found(tmp_path, monkeypatch, "eval=real", f"eval.texts.skip={skip}")
    assert (config.eval.texts.skip, config.eval.texts.documents, config.eval.questions) == (chosen, 80, "all")
    assert (one.eval.texts.skip, one.eval.texts.documents, one.eval.questions) == (0, chosen, "all")
    assert list(one.eval.roles) == ["retain_text", "forget_text"]


def test_seeds_share_their_trials_and_other_coefficients_do_not(tmp_path, monkeypatch):
    def key(*overrides):
        config, trials = found(tmp_path, monkeypatch, *overrides)
        return auto_nu._folder(config, trials)

    assert key() == key("seed=3") == key("rna.auto.forgetting_lost=0.1") == key("eval.tokens_per_batch=77")
    assert len({key(), key("method.c=2"), key("rna.auto.steps=20"), key("rna.auto.around=1")}) == 4


def test_nu_as_a_variance_is_the_square(tmp_path, monkeypatch):
    _, trials = found(tmp_path, monkeypatch, "rna.scale=variance", "rna.auto.around=2")
    assert [one.rna.nu for one in trials[-2:]] == [64, 256]


def test_a_report_shows_trials_only_if_it_is_asked_for_them(tmp_path):
    run, tried = made_up_run(tmp_path / "runs/a"), made_up_run(tmp_path / "auto_nu/runs/b")
    assert [one.folder for one in collect([tmp_path])] == [run]
    assert [one.folder for one in collect([tmp_path / "auto_nu"])] == [tried]


@pytest.mark.slow  # alone trains the trials, for a run that is killed meanwhile and for a grid, and finds them finished
def test_a_run_with_nu_found_on_the_embedded_model(tmp_path):
    def command(*overrides):
        job = ("train.steps=20", "train.lr=5e-3", "rna.auto.questions=40", "eval.subset=20", "tracker=none")
        return [sys.executable, "launch.py", *overrides, "rna.nu=auto", *job, f"output_root={tmp_path / 'out'}"]

    def until_killed(log):
        """In the middle of the trials' evaluation."""
        with log.open("w") as out:
            process = subprocess.Popen(
                command("method=adaptive_rmu"), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
            while "Evaluating the unlearned model, 8 runs" not in (said := log.read_text()):
                assert process.poll() is None, said
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def launched(*overrides):
        done = subprocess.run(command(*overrides), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def folders(name):
        return len(list((tmp_path / "out" / name).iterdir()))

    until_killed(tmp_path / "log")
    said = launched("method=adaptive_rmu")
    assert "rna.nu=auto: 8 trials of 20 steps" in said
    assert said.count("training 20/20") == 1  # the run's; the trials were trained before
    [run] = (tmp_path / "out/runs").iterdir()
    record = json.loads((run / "run.json").read_text())
    tried = record["config"]["nu_found"]["trials"]
    assert record["identity"]["rna"]["nu"] in [each["nu"] for each in tried if "error" not in each]
    assert (len(tried), folders("auto_nu/runs")) == (8, 8)
    grid = launched("-m", "hydra/launcher=packed", "method=adaptive_rmu,rmu")
    assert (folders("runs"), folders("auto_nu/runs")) == (2, 16)
    assert grid.count("trials of 20 steps") == 2
    assert grid.count("nothing to do") == 9  # the trials of Adaptive RMU and its run
