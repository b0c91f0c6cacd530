"""What the paper is about, on the embedded model, in small: a change that breaks it is noticed here.

Six runs of the default configuration, and at most 600 questions of a role.
Trajectories differ between machines, so the bounds are on means over the methods and far from what is measured.
"""

import json
from statistics import mean

import pytest

from unlearn.experiment import run_together

METHODS = ("rmu", "adaptive_rmu", "rsv")
EVAL = ("eval=toy", "eval.subset=600", "eval.queries=[default,perturbed,control]", "tracker=none")


@pytest.fixture(scope="module")
def accuracies(conf, tmp_path_factory):
    """Accuracies in percent: (method, with RNA, role, query) -> unlearned, and ("base", role, query)."""
    root = tmp_path_factory.mktemp("science")
    found = {}
    # RSV works at another layer: a process of its own.
    for methods in (METHODS[:2], METHODS[2:]):
        variants = [(method, rna) for method in methods for rna in (False, True)]
        configs = [
            conf(f"method={method}", f"rna={'gaussian' if rna else 'none'}", *EVAL, f"output_root={root}")
            for method, rna in variants
        ]
        for variant, outcome in zip(variants, run_together(configs), strict=True):
            assert outcome.error is None
            metrics = json.loads((outcome.folder / "metrics.json").read_text())
            for role, tasks in configs[0].eval.tasks.items():
                for query in ("default", "perturbed", "control"):
                    for model, key in (("unlearned", variant), ("base", ("base",))):
                        values = [metrics[f"{model}/{task}/{query}/acc"] for task in tasks]
                        found[(*key, role, query)] = 100 * mean(values)
    return found


def drop(accuracies, *key, query="perturbed"):
    return accuracies[(*key, "retain", "default")] - accuracies[(*key, "retain", query)]


def over_methods(value):
    return mean(value(method) for method in METHODS)


def test_knowledge_is_forgotten_and_other_knowledge_kept(accuracies):
    assert accuracies["base", "forget", "default"] > 95
    for method in METHODS:
        for rna in (False, True):
            assert accuracies[method, rna, "forget", "default"] < 45
            assert accuracies[method, rna, "retain", "default"] > 90


def test_without_rna_forget_tokens_make_the_model_stumble(accuracies):
    beyond = over_methods(lambda m: drop(accuracies, m, False)) - drop(accuracies, "base")
    assert beyond > 6


def test_other_words_do_less_harm(accuracies):
    control = over_methods(lambda m: drop(accuracies, m, False, query="control"))
    assert control < over_methods(lambda m: drop(accuracies, m, False)) - 2


def test_rna_takes_a_good_part_of_the_drop_away(accuracies):
    without = over_methods(lambda m: drop(accuracies, m, False)) - drop(accuracies, "base")
    beyond = over_methods(lambda m: drop(accuracies, m, True)) - drop(accuracies, "base")
    assert beyond < 0.7 * without
