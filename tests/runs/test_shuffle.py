"""data.shuffle: the same documents, in an order that the seed draws."""

import pytest
from safetensors.torch import load_file

from unlearn.experiment import run
from unlearn.runs.inputs import load_inputs
from unlearn.sweeps.packs import groups_that_share


def documents(config):
    return [(topic.forget, topic.retain) for topic in load_inputs(config).topics]


def test_documents_stay_the_same_and_their_order_comes_from_the_seed(short):
    how = ("train.steps=12", "data.shuffle=true")
    plain = documents(short("train.steps=12"))
    one, again, two = (documents(short(*how, f"seed={seed}")) for seed in (1, 1, 2))
    assert one == again
    assert one != two
    for shuffled in (one, two):
        for before, after in zip(plain, shuffled, strict=True):
            assert all(a != b for a, b in zip(before, after, strict=True))
            assert [sorted(part) for part in before] == [sorted(part) for part in after]
    assert one[0][1] != one[1][1]  # both topics of the embedded world have one corpus to retain


@pytest.mark.parametrize("shuffle", [False, True])
def test_seeds_of_a_method_without_randomness_differ_in_the_order_alone(short, shuffle):
    how = ("method=grad_diff", "rna=none", "train.steps=3", "eval=none", f"data.shuffle={shuffle}")
    configs = [short(*how, f"seed={seed}") for seed in (1, 2)]
    assert groups_that_share(dict(enumerate(configs))) == ([[0], [1]] if shuffle else [[0, 1]])
    one, two = (load_file(run(config) / "delta.safetensors") for config in configs)
    assert all(one[name].equal(two[name]) != shuffle for name in one)
