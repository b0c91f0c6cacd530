"""The strongest of an attack's settings: each half of the items chooses one, and the other half is measured."""

import json
from dataclasses import replace

import pytest

from unlearn.attacks.attack import Target, Unlearning
from unlearn.attacks.make import plan
from unlearn.attacks.relearning import Relearning
from unlearn.attacks.results import AttackResults
from unlearn.attacks.run import _Places
from unlearn.attacks.strongest import strongest_of_each
from unlearn.attacks.table import show
from unlearn.errors import UserError
from unlearn.evaluation.suite import Suite
from unlearn.records.attacks import HALVES, AttackAbout, AttackScore
from unlearn.records.scores import Score
from unlearn.records.strongest import Candidate, chosen_on, judged


def made(folder, name, arguments, forget, retain=(1.0, 1.0)):
    """Results at one level, with these accuracies on the two halves."""
    scores = []
    for role, halves in (("forget", forget), ("retain", retain)):
        scores.append(Score("unlearned", role, "bio", None, "default", "acc", sum(halves) / 2))
        scores += [
            Score("unlearned", role, f"half {h}", HALVES, "default", "acc", value) for h, value in enumerate(halves)
        ]
    rows = [AttackScore(name, 0 if name == "none" else 5, "5 steps", score) for score in scores]
    return AttackResults(folder / f"{name}-{json.dumps(arguments)}", AttackAbout(name, "q", arguments), rows)


def swept(folder, bound=None):
    """The high rate is best on half 0, where it ruins what is retained; the low one is best on half 1."""
    low, high = ({"lr": lr, "bound": bound} for lr in (1e-5, 1e-3))
    return [
        made(folder, "none", {}, (0.2, 0.2)),
        made(folder, "relearning", low, (0.3, 0.7)),
        made(folder, "relearning", high, (0.8, 0.4), (0.5, 0.9)),
    ]


HIGH, LOW = "relearning, lr=0.001, 5 steps", "relearning, lr=1e-05, 5 steps"


def test_a_rate_is_judged_on_the_half_that_did_not_choose_it(tmp_path):
    [of] = strongest_of_each(swept(tmp_path))
    assert (of.attack, of.unit, of.of) == ("relearning", "points", 2)
    assert of.picks == [HIGH, LOW]
    assert of.known == pytest.approx(0.2 + (0.2 + 0.1) / 2)


def test_a_rate_that_costs_more_retained_knowledge_than_the_bound_is_not_chosen(tmp_path):
    [of] = strongest_of_each(swept(tmp_path, bound=20))
    assert of.picks == [LOW, LOW]
    assert of.known == pytest.approx(0.2 + (0.5 + 0.1) / 2)


def test_levels_are_chosen_as_settings_are(tmp_path):
    plain, relearned, _ = swept(tmp_path)
    longer = made(tmp_path, "relearning", {}, (0.9, 0.1)).rows
    relearned.rows += [replace(row, level=50, level_name="50 steps") for row in longer]
    [of] = strongest_of_each([plain, relearned])
    assert of.picks == ["relearning, 50 steps", "relearning, 5 steps"]


def test_where_no_rate_is_within_the_bound_nothing_comes_back():
    ruinous = [Candidate((30.0, 30.0), (50.0, 1.0)), Candidate((20.0, 40.0), (None, 2.0))]
    picks = [chosen_on(half, ruinous, [10.0, 10.0]) for half in (0, 1)]
    assert picks == [None, 1]
    assert judged(ruinous, picks) == (0 + 20) / 2


def test_a_bound_needs_retained_knowledge_in_the_evaluation():
    target = Target(None, None, Unlearning(layer=1), Suite({}, {"forget": []}, {}, None))
    assert "attack.bound=5 needs retained knowledge" in Relearning([1], bound=5).obstacle(target)


def test_one_setting_of_one_level_is_no_choice(tmp_path):
    assert strongest_of_each(swept(tmp_path)[:2]) == []


def test_the_table_has_the_judged_figure_and_says_what_was_chosen(tmp_path, capsys):
    show("RUN", swept(tmp_path))
    printed = capsys.readouterr().err
    [line] = [line for line in printed.splitlines() if "relearning, strongest of 2" in line]
    assert line.split()[4:] == ["judged", "35.0"]
    assert f"relearning, points: {HIGH} and {LOW}" in " ".join(printed.split())


def test_the_bound_is_no_part_of_what_determines_the_scores():
    """Results that were made without one are not measured again."""
    places = _Places.__new__(_Places)
    places._common = {}
    keys = []
    for bound in ("null", "0.5"):
        [planned] = plan(["relearning"], [f"attack.bound={bound}"])
        object.__setattr__(planned.attack, "depends_on", lambda target: {})
        keys.append(places._key(planned, None))
    assert keys[0] == keys[1]
    assert {"levels", "lr", "optimizer"} < set(keys[0]["arguments"])
    assert "bound" not in keys[0]["arguments"]
    with pytest.raises(UserError, match=r"attack\.bound=-1 is not allowed"):
        plan(["relearning"], ["attack.bound=-1"])
