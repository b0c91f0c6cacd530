"""Equal effort: the page of made-up searches and of the made-up runs that judge their winners."""

import pytest

from tests.analysis.made_up import made_up_run
from unlearn.errors import UserError
from unlearn.paper.equal_effort import write_equal_effort
from unlearn.sweeps.search.settings import SearchSettings
from unlearn.sweeps.search.study import ABOUT, OF_TRIAL, open_study

OBJECTIVES, BOUNDS = {"perturbed_accuracy": "max"}, {"forget_accuracy": -58.0}
GIVEN = {"trials": 3, "generation": 3, "sampler": "random", "sampler_seed": 0, "seeds": [0], "of": "mean"}
TASKS = ("mmlu", "wmdp_bio", "wmdp_cyber")


def made_up_search(folder, figures, nu=None):
    """A search of RMU whose trial number i has c = i + 1, and these figures: perturbed and forget accuracy."""
    settings = SearchSettings.read({**GIVEN, "objectives": OBJECTIVES, "bounds": BOUNDS})
    study = open_study(folder / "searches/tiny-0", settings)
    (folder / "searches/tiny-0/sweep.json").write_text("{}")  # as a search's jobs leave it
    study.set_user_attr(ABOUT, {"method": "rmu", "settings": settings.model_dump()})
    for number, (perturbed, forget) in enumerate(figures):
        trial = study.ask()
        trial.suggest_float("method.c", number + 1, number + 1)
        if nu is not None:
            trial.suggest_float("rna.nu", nu, nu)
        trial.set_user_attr(OF_TRIAL, {"perturbed_accuracy": perturbed, "forget_accuracy": forget})
        trial.set_constraint("forget_accuracy", forget + 58)
        study.tell(trial, [perturbed])


def judge(folder, c, nu, right):
    """Runs of two seeds; `right` of twenty perturbed questions are answered."""
    for seed in (50, 51):
        answers = {(task, "perturbed"): [i < right for i in range(20)] for task in TASKS}
        answers |= {(task, "default"): [True] * 20 for task in TASKS}
        run = folder / f"judged/runs/{c}-{nu}-{seed}"
        made_up_run(run, argument={"c": float(c)}, nu=nu, seed=seed, answers=answers)


def page(folder):
    output = folder / "page.md"
    write_equal_effort(folder, output)
    return output.read_text()


def test_winners_are_judged_by_their_own_runs_and_rna_against_none(tmp_path):
    # The second trial is better than the first but breaks the bound; the third is within it.
    made_up_search(tmp_path / "rna", [(-20, -60), (-1, -10), (-10, -59)], nu=0.5)
    made_up_search(tmp_path / "none", [(-30, -60), (-1, -10), (-40, -59)])
    judge(tmp_path / "rna", 3, 0.5, right=16)
    judge(tmp_path / "rna", 1, 0.5, right=1)  # of an earlier winner
    judge(tmp_path / "none", 1, 0.0, right=10)
    written = page(tmp_path)
    assert "### The best of 3 trials each" in written
    rows = [line for line in written.splitlines() if line.startswith("| rmu")]
    [none] = [row for row in rows if "| none " in row]
    [rna] = [row for row in rows if "| in the space " in row]
    assert "#2: method.c=3, rna.nu=0.5" in rna
    assert "#0: method.c=1" in none
    assert "-10 |" in rna and "| -20.00 (" in rna  # noqa: PT018
    assert "-30 |" in none and "| -50.00 (" in none  # noqa: PT018
    assert "+30.00 (" in written.partition("What RNA in the space changes")[2]


def test_unequal_numbers_of_trials_and_searches_without_a_winner_are_told(tmp_path):
    made_up_search(tmp_path / "rna", [(-20, -60)], nu=0.5)
    made_up_search(tmp_path / "none", [(-1, -10), (-1, -10)])
    written = page(tmp_path)
    assert "The effort is not equal" in written
    assert "not judged yet" in written
    assert "None of 2 complete trials keeps the bounds." in written
    assert "What RNA in the space changes" not in written


def test_a_folder_without_searches_is_refused(tmp_path):
    with pytest.raises(UserError, match="no search is here"):
        write_equal_effort(tmp_path, None)
