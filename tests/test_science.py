"""What the paper is about, on the embedded model, in small: a change that breaks it is noticed here.

`make test` has RMU with and without RNA and 150 questions of a role, `make test-all` all methods and 300. Trajectories
differ between machines, so the bounds are on means over the methods and far from what is measured.
"""

from dataclasses import dataclass
from statistics import mean

import pytest

from tests.conftest import read_metrics
from unlearn.experiment import run_together


@dataclass(frozen=True)
class Scale:
    """Methods, by the processes that they share; questions of a role; and the bounds, in points of accuracy."""

    packs: tuple[tuple[str, ...], ...]
    questions: int
    least_drop: float
    least_above_control: float

    @property
    def methods(self):
        return [method for pack in self.packs for method in pack]


SHORT = Scale((("rmu",),), questions=150, least_drop=4, least_above_control=2)
# RSV works at another layer: a process of its own.
LONG = Scale((("rmu", "adaptive_rmu"), ("rsv",)), questions=300, least_drop=6, least_above_control=2)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SHORT, marks=pytest.mark.short, id="short"),
        pytest.param(LONG, marks=pytest.mark.slow, id="long"),
    ],
)
def scale(request):
    return request.param


@pytest.fixture(scope="module")
def accuracies(scale, conf, tmp_path_factory):
    """Accuracies in percent: (method, with RNA, role, query) -> unlearned, and ("base", role, query)."""
    root = tmp_path_factory.mktemp("science")
    asked = ("eval=toy", f"eval.subset={scale.questions}", "eval.queries=[default,perturbed,control]", "tracker=none")
    found = {}
    for methods in scale.packs:
        variants = [(method, rna) for method in methods for rna in (False, True)]
        configs = [
            conf(f"method={method}", f"rna={'gaussian' if rna else 'none'}", *asked, f"output_root={root}")
            for method, rna in variants
        ]
        for variant, outcome in zip(variants, run_together(configs), strict=True):
            assert outcome.error is None
            metrics = read_metrics(outcome.folder)
            for role, tasks in configs[0].eval.tasks.items():
                for query in ("default", "perturbed", "control"):
                    for model, key in (("unlearned", variant), ("base", ("base",))):
                        values = [metrics[f"{model}/{task}/{query}/acc"] for task in tasks]
                        found[(*key, role, query)] = 100 * mean(values)
    return found


def drop(accuracies, *key, query="perturbed"):
    return accuracies[(*key, "retain", "default")] - accuracies[(*key, "retain", query)]


def test_knowledge_is_forgotten_and_other_knowledge_kept(scale, accuracies):
    assert accuracies["base", "forget", "default"] > 95
    for method in scale.methods:
        for rna in (False, True):
            assert accuracies[method, rna, "forget", "default"] < 45
            assert accuracies[method, rna, "retain", "default"] > 90


def test_without_rna_forget_tokens_make_the_model_stumble(scale, accuracies):
    beyond = mean(drop(accuracies, m, False) for m in scale.methods) - drop(accuracies, "base")
    assert beyond > scale.least_drop


def test_other_words_do_less_harm(scale, accuracies):
    control = mean(drop(accuracies, m, False, query="control") for m in scale.methods)
    assert control < mean(drop(accuracies, m, False) for m in scale.methods) - scale.least_above_control


def test_rna_takes_a_good_part_of_the_drop_away(scale, accuracies):
    without, beyond = (
        mean(drop(accuracies, m, rna) for m in scale.methods) - drop(accuracies, "base") for rna in (False, True)
    )
    assert beyond < 0.7 * without


@pytest.mark.slow
def test_methods_on_likelihoods_forget_and_keep_other_knowledge(conf, tmp_path):
    """Their defaults for the embedded model; DPO's other texts need a process of their own."""
    asked = ("eval=toy", "eval.subset=150", "eval.queries=[default]", "tracker=none", f"output_root={tmp_path}")
    for methods in (("npo", "simnpo", "grad_diff"), ("dpo",)):
        configs = [conf(f"method={method}", *asked) for method in methods]
        for config, outcome in zip(configs, run_together(configs), strict=True):
            assert outcome.error is None
            metrics = read_metrics(outcome.folder)
            found = {
                role: 100 * mean(metrics[f"unlearned/{task}/default/acc"] for task in tasks)
                for role, tasks in config.eval.tasks.items()
            }
            assert found["forget"] < 50, config.method["name"]
            assert found["retain"] > 85, config.method["name"]
