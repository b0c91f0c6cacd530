"""The memory that training needs, and whether activations are recomputed for it."""

import pytest

from unlearn.models.loading import Source, load_config, load_whole
from unlearn.runs import memory
from unlearn.runs.memory import must_recompute, needed_memory
from unlearn.training.cost import Shape


@pytest.fixture
def shape(conf):
    config = conf()
    return Shape.of(load_config(Source.of(config.model)), config.model.layer)


def test_methods_on_likelihoods_need_the_whole_model_and_preferred_texts_their_tokens(conf, shape):
    need = {
        name: needed_memory([conf(f"method={name}")], shape, weight_bytes=4, recompute=False)
        for name in ("rmu", "npo", "dpo")
    }
    assert need["rmu"].weights < need["npo"].weights == need["dpo"].weights
    assert need["rmu"].working < need["npo"].working < need["dpo"].working
    mixed = needed_memory([conf("method=rmu"), conf("method=npo")], shape, weight_bytes=4, recompute=False)
    assert mixed == need["npo"]


def test_activations_are_recomputed_only_where_they_would_not_fit(conf, shape, monkeypatch):
    model = load_whole(Source.of(conf().model))

    def decided(free, *overrides):
        monkeypatch.setattr(memory, "free_memory", lambda _device: free)
        return must_recompute([conf(*overrides)] * 2, model)

    need = needed_memory([conf("method=npo")], shape, weight_bytes=4, recompute=False)
    enough = (need.working + 2 * need.variant) / 0.9 + 100
    assert decided(enough - 200, "method=npo")
    assert not decided(enough, "method=npo")
    assert not decided(0, "method=rmu")  # no layer above l is trained through
    assert not decided(0, "method=npo", "train.recompute=never")
    assert decided(enough, "method=npo", "train.recompute=always")


def test_recomputing_needs_less_memory_for_the_same_variants(conf, shape):
    kept, again = (
        needed_memory([conf("method=npo")], shape, weight_bytes=4, recompute=recompute) for recompute in (False, True)
    )
    assert again.working < kept.working
    assert (again.weights, again.variant) == (kept.weights, kept.variant)
