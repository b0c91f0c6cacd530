"""What the paper is about, on the embedded model: a change that breaks it is noticed here and nowhere else.

Trajectories differ between machines, so the bounds are on means over the methods and far from what is measured.
"""

from statistics import mean

import pytest

from tests.conftest import read_metrics
from unlearn.experiment import run, run_together

pytestmark = pytest.mark.slow  # alone trains every method to the end, and looks for the paper's effects
# Methods by the processes that they share: RSV works at another layer.
PACKS = (("rmu", "adaptive_rmu"), ("rsv",))
METHODS = [method for pack in PACKS for method in pack]
LEAST_DROP, LEAST_ABOVE_CONTROL = 6, 2  # points of accuracy
QUERIES = {"retain": ("default", "perturbed", "control"), "forget": ("default",)}


@pytest.fixture(scope="module")
def accuracies(conf, tmp_path_factory):
    """Accuracies in percent: (method, with RNA, role, query) -> unlearned, and ("base", role, query)."""
    root = tmp_path_factory.mktemp("science")
    asked = ("eval=toy", "~eval.tasks.near", "eval.subset=150", "eval.queries=[default,perturbed,control]")
    asked += ("+eval.asked_of={perturbed: [retain], control: [retain]}", "tracker=none")
    accuracies = {}
    for methods in PACKS:
        variants = [(method, rna) for method in methods for rna in (False, True)]
        configs = [
            conf(f"method={method}", f"rna={'gaussian' if rna else 'none'}", *asked, f"output_root={root}")
            for method, rna in variants
        ]
        for variant, outcome in zip(variants, run_together(configs), strict=True):
            assert outcome.error is None
            metrics = read_metrics(outcome.folder)
            for role, tasks in configs[0].eval.tasks.items():
                for query in QUERIES[role]:
                    for model, key in (("unlearned", variant), ("base", ("base",))):
                        values = [metrics[f"{model}/{task}/{query}/acc"] for task in tasks]
                        accuracies[(*key, role, query)] = 100 * mean(values)
    return accuracies


def drop(accuracies, *key, query="perturbed"):
    return accuracies[(*key, "retain", "default")] - accuracies[(*key, "retain", query)]


def test_knowledge_is_forgotten_and_other_knowledge_kept(accuracies):
    assert accuracies["base", "forget", "default"] > 95
    for method in METHODS:
        for rna in (False, True):
            assert accuracies[method, rna, "forget", "default"] < 45
            assert accuracies[method, rna, "retain", "default"] > 90


def test_without_rna_forget_tokens_make_the_model_stumble(accuracies):
    beyond = mean(drop(accuracies, m, False) for m in METHODS) - drop(accuracies, "base")
    assert beyond > LEAST_DROP


def test_other_words_do_less_harm(accuracies):
    control = mean(drop(accuracies, m, False, query="control") for m in METHODS)
    assert control < mean(drop(accuracies, m, False) for m in METHODS) - LEAST_ABOVE_CONTROL


def test_rna_takes_a_good_part_of_the_drop_away(accuracies):
    without, beyond = (
        mean(drop(accuracies, m, rna) for m in METHODS) - drop(accuracies, "base") for rna in (False, True)
    )
    assert beyond < 0.7 * without


def test_a_method_on_likelihoods_forgets_and_keeps_other_knowledge(conf, tmp_path):
    """DPO, whose loss has all parts that the others have: preferred texts, a reference, retain texts."""
    asked = ("eval=toy", "~eval.tasks.near", "eval.subset=90", "eval.queries=[default]")
    config = conf("method=dpo", *asked, "tracker=none", f"output_root={tmp_path}")
    metrics = read_metrics(run(config))
    accuracy = {
        role: 100 * mean(metrics[f"unlearned/{task}/default/acc"] for task in tasks)
        for role, tasks in config.eval.tasks.items()
    }
    assert accuracy["forget"] < 50
    assert accuracy["retain"] > 85
