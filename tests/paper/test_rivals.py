"""RNA against its rivals: the envelope, that other texts choose it than measure, and the page."""

import math

import numpy as np
import pytest

from tests.analysis.made_up import difference, made_up_run
from unlearn.analysis.collect import collect
from unlearn.analysis.report.material import gather
from unlearn.analysis.settings import Setting
from unlearn.paper.claims.equal_forgetting import FORGOTTEN_PART
from unlearn.paper.claims.evidence import Evidence
from unlearn.paper.claims.rivals import (
    NATS,
    Point,
    beside_envelope,
    envelope,
    excess,
    excesses,
    points,
    tables,
)
from unlearn.records.names import text_role
from unlearn.records.samples import Sample, half_of, write_samples

TEXTS = 16
WIDEST = 2.0


def point(forgotten, harm, *, nu=0.0, seed=0, label="", uneven=0.0, **config):
    """A run; `harm` is one number, or one for each half of the texts, or one for each text.

    Of two forgotten texts, one is `uneven` above their mean, one below.
    """
    if isinstance(harm, (int, float)):
        harm = (harm, harm)
    if len(harm) == 2:
        harm = [harm[half_of(str(i))] for i in range(TEXTS)]
    config = {"method.name": "rmu", "rna.nu": nu, "loss.alpha": 300.0, "model.layer": 7.0, "train.steps": 9.0, **config}
    setting = Setting(frozenset((key.replace("__", "."), value) for key, value in config.items()))
    by_text = {"wiki": {str(i): h for i, h in enumerate(harm)}}
    lost = {"bio": {"0": forgotten - uneven, "1": forgotten + uneven}}
    return Point(setting, seed, label or f"{forgotten:g}", by_text, lost)


def means(by_text):
    """Of each half. The excess is the mean over two parts, of which the other is that of the forgotten texts."""
    return {half: np.mean([v / 2 for i, v in by_text["wiki"].items() if half_of(i) == half]) for half in (0, 1)}


def test_forgotten_texts_are_items_that_move_where_the_envelope_is_read():
    rivals = [point(2.5, 1.0), point(3.5, 2.0)]  # one more nat forgotten does one more nat of harm
    by_text, _ = excess(point(3, 1.5, nu=2.0, uneven=0.1), rivals, WIDEST)
    assert set(by_text) == {"wiki", f"{FORGOTTEN_PART}bio"}
    assert by_text[f"{FORGOTTEN_PART}bio"] == {"0": pytest.approx(2 * 0.1), "1": pytest.approx(2 * -0.1)}
    assert np.mean(list(by_text["wiki"].values())) == pytest.approx(0)


def test_the_envelope_is_of_rivals_that_no_other_dominates():
    """At 3 one forgets as much as the one at 4 does, at more harm; at 2 two differ in harm."""
    rivals = [point(f, h) for f, h in ((2, 1.0), (4, 2.0), (3, 2.5), (2, 0.5), (5, 4.0))]
    assert [(p.forgotten, p.mean(0)) for p in envelope(rivals, 0)] == [(2, 0.5), (4, 2.0), (5, 4.0)]


def test_between_neighbours_harm_is_interpolated_and_not_across_a_wide_gap_or_beyond_the_end():
    on = [point(1.5, 0.3), point(3, 1.0), point(5.5, 2.0)]

    def read(forgotten, rivals=on):
        return beside_envelope(point(forgotten, 0.0), rivals, 0, WIDEST)

    assert (read(2).below, read(2).above, read(2).part) == (on[0], on[1], pytest.approx(1 / 3))
    assert (read(0.5).below.label, read(0.5).part) == ("the base model", pytest.approx(1 / 3))
    assert read(4) is None  # 2.5 nats apart
    assert read(6) is None
    assert read(5.5, [point(5.5, 2.0)] * 2).weights == (1, 0, -1)


def test_one_half_chooses_and_the_other_measures():
    """Two rivals, each better on one half: by the texts that choose they do 0.2 harm, and 1.0 on the others."""
    rivals = [point(3, (0.2, 1.0), label="a"), point(3, (1.0, 0.2), label="b")]
    by_text, labels = excess(point(3, 0.5, nu=2.0), rivals, WIDEST)
    assert means(by_text) == {0: pytest.approx(-0.5), 1: pytest.approx(-0.5)}
    assert sorted(labels) == ["a", "b"]


def test_many_rivals_that_are_alike_but_for_chance_look_no_better_than_they_are():
    """Chosen and measured on the same texts, the best of 50 would be 0.6 better than RNA, which does as much harm."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        rivals = [point(3, rng.normal(1.0, 1.0, TEXTS)) for _ in range(50)]
        by_text, _ = excess(point(3, rng.normal(1.0, 1.0, TEXTS), nu=2.0), rivals, WIDEST)
        found += [value / 2 for value in by_text["wiki"].values()]
    assert np.mean(found) == pytest.approx(0, abs=4 * math.sqrt(2 / len(found)))


def test_rivals_are_of_the_same_method_and_seed_and_else_alike_but_for_what_is_free():
    rna = [point(3, 0.5, nu=2.0, seed=seed) for seed in (0, 1)]
    free = [point(3, 0.9, seed=0, **{"model.layer": 5.0, "train.steps": 4.0}), point(3, 0.7, seed=1)]
    others = [point(3, 0.0, seed=0, **{"loss.mask": "none"}), point(3, 0.0, seed=2)]
    others += [point(3, 0.0, seed=0, **{"method.name": "rsv"})]
    [found] = excesses([*rna, *free, *others], WIDEST)
    assert {seed: means(by_text)[0] for seed, by_text in found.by_seed.items()} == {
        0: pytest.approx(-0.4),
        1: pytest.approx(-0.2),
    }
    assert (found.rivals, found.without) == (1, 0)


def text_run(root, name, seed, *, forgotten, harm, nu=0.0, alpha=300, where=None):
    """A run whose retained texts have 3 nats a token in the base model, with a forget-token, too."""
    corpora = {"retain": {"wiki": ""}, "forget": {"bio": ""}}
    changes = {
        "identity.eval.tasks": {},
        "identity.eval.queries": ["default", "perturbed"],
        "identity.eval.texts": {"corpora": corpora},
        "identity.loss": {"alpha": alpha},
        **({} if where is None else {"identity.rna.where": where}),
    }
    retained, forget = text_role("retain"), text_role("forget")
    scores = [
        difference(forget, "bio", "default", "nats", forgotten),
        difference(retained, "wiki", "perturbed", "nats", harm, "default"),
    ]
    folder = made_up_run(root / f"{name}-{seed}", nu=nu, seed=seed, changes=changes, scores=scores)
    draw = np.random.default_rng([seed, len(name)])
    rows = []
    for i in range(2 * TEXTS):  # two texts for each forget-token
        for model, nats in (("base", 3.0), ("unlearned", 3.0 + harm + 0.01 * draw.normal() + 0.01 * seed)):
            agreement = None if model == "base" else 1 - harm / 10
            more = {"nats": 10 * nats, "tokens": 10, "agreement": agreement, "inserted": f"token {i // 2}"}
            rows.append(Sample(model, retained, "wiki", "perturbed", i, f"{i}", **more))
    for model, nats, agreement in (("base", 3.0, None), ("unlearned", 3.0 + forgotten, 1 - forgotten / 10)):
        more = {"nats": nats, "tokens": 1, "agreement": agreement}
        rows += [Sample(model, forget, "bio", "default", i, f"{i}", **more) for i in range(2)]
    write_samples(folder, rows)


def test_the_page_sets_rna_beside_rivals_and_placebos_each_nu_by_itself(tmp_path):
    for seed in range(3):
        text_run(tmp_path, "plain", seed, forgotten=4.0, harm=2.0)
        text_run(tmp_path, "weak", seed, forgotten=3.0, harm=1.0, alpha=800)
        text_run(tmp_path, "rna", seed, forgotten=3.5, harm=1.2, nu=2.0)
        text_run(tmp_path, "little", seed, forgotten=3.5, harm=1.5, nu=1.0)
        text_run(tmp_path, "gradient", seed, forgotten=3.5, harm=1.6, nu=2.0, where="gradient")
        text_run(tmp_path, "target", seed, forgotten=3.5, harm=1.5, nu=600.0, where="forget_target")
    evidence = Evidence(gather(collect([tmp_path])))
    assert len(points(evidence, NATS)) == 18
    rows, in_points = ({row["noise"]: row for row in t.data.to_dict("records")} for t in tables(evidence))
    assert rows["RNA, nu = 2"]["excess"].startswith("**seen** -0.30 (")
    assert rows["RNA, nu = 2"]["excess"].endswith("; 3 seeds x 16 tokens)")
    assert rows["RNA, nu = 1"]["excess"].startswith("**not seen** ")
    assert rows["noise on the gradient, nu = 2"]["excess"].startswith("**contrary** +0.1")
    assert rows["noise on the gradient, nu = 2"]["RNA less this placebo"].startswith("**seen** -0.40 (")
    assert rows["noise on the forget target, nu = 600"]["RNA less this placebo"].startswith("**seen** -0.30 (")
    assert rows["RNA, nu = 2"]["RNA less this placebo"] == "–"
    assert in_points["RNA, nu = 2"]["forgotten"] == "35.0"
    assert in_points["RNA, nu = 2"]["excess"].startswith("**seen** -3.0 (")
