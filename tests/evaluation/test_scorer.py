"""Our model class against lm-eval's own: the same log-likelihoods, whatever is shared and however it is batched."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from tests.conftest import ROOT
from unlearn.evaluation.forward import read_logits
from unlearn.evaluation.scorer import Scorer
from unlearn.evaluation.tree import grow
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole

SOURCE = Source(str(ROOT / "unlearn/toy/model"))
WORDS = ("soil", "blossom", "river", "harbour", "ruler", "mountain")


def requests(pairs):
    return [Instance("loglikelihood", {}, pair, i, ("t", i, 1)) for i, pair in enumerate(pairs)]


def prompts():
    """Questions that share nothing, much, or all but an option; continuations of one token and of several."""
    pairs = []
    for word in WORDS:
        for option in ("ruler", "soil of the river"):
            context = f"Question: what is the {word} of the harbour?\nA. {option}\nB. mountain\nAnswer:"
            pairs += [(context, f" {letter}") for letter in "AB"]
        pairs += [
            (f"The {word} is", " a river"),
            (f"The {word} is", " the mountain of the ruler"),
            ("", f"{word} soil"),
        ]
    return pairs


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(SOURCE)


def random_model(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


MODELS = {
    "toy": lambda n: load_whole(SOURCE),
    "gpt2": lambda n: GPT2LMHeadModel(GPT2Config(vocab_size=n, n_embd=16, n_layer=2, n_head=2)).eval(),
    "softcapped": lambda n: random_model(
        Gemma2Config(
            vocab_size=n, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, sliding_window=64, final_logit_softcapping=1.0,
        )
    ),
    "short window": lambda n: random_model(
        MistralConfig(
            vocab_size=n, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, sliding_window=6,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
@pytest.mark.parametrize("name", MODELS)
def test_loglikelihoods_are_those_of_lm_evals_own_class(name, tokens_per_batch, tokenizer):
    model = MODELS[name](len(tokenizer))
    asked = requests(prompts())
    expected = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3).loglikelihood(asked, disable_tqdm=True)
    scorer = Scorer(ModelGroup(model), tokenizer, tokens_per_batch)
    found = scorer.loglikelihood(asked)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    assert scorer.shares_prefixes == (name != "short window")


def test_shared_beginnings_are_computed_once(tokenizer, monkeypatch):
    scorer = Scorer(ModelGroup(load_whole(SOURCE)), tokenizer, 10_000)
    pairs = [pair for pair in prompts() if "Question" in pair[0]]
    computed = 0

    def counting(group, members, trees, *others):
        nonlocal computed
        computed += sum(len(tree.ids) for tree in trees)
        return read_logits(group, members, trees, *others)

    monkeypatch.setattr("unlearn.evaluation.scorer.read_logits", counting)
    scorer.loglikelihood(requests(pairs))
    contexts = {context for context, _ in pairs}
    assert 0 < computed < 0.75 * sum(len(tokenizer(context)["input_ids"]) for context in contexts)


def test_the_budget_reaches_the_model(tokenizer, monkeypatch):
    model = load_whole(SOURCE)
    shapes = []
    real = model.forward
    monkeypatch.setattr(model, "forward", lambda input_ids, **k: shapes.append(input_ids.shape) or real(input_ids, **k))
    calls = {}
    for budget in (60, 120, 1000):
        scorer = Scorer(ModelGroup(model), tokenizer, budget)
        shapes.clear()
        scorer.loglikelihood(requests(prompts()))
        calls[budget] = len(shapes)
        assert max(rows * (length - 7) for rows, length in shapes) <= budget  # up to 7 more to a multiple of 8
    assert calls[60] > calls[120] > calls[1000]


def test_too_little_memory_halves_the_batches_and_goes_on(tokenizer, monkeypatch):
    scorer = Scorer(ModelGroup(load_whole(SOURCE)), tokenizer, 10_000)
    expected = Scorer(ModelGroup(load_whole(SOURCE)), tokenizer, 10_000).loglikelihood(requests(prompts()))

    def limited(group, members, trees, *others):
        if len(trees) > 2:
            raise torch.OutOfMemoryError
        return read_logits(group, members, trees, *others)

    monkeypatch.setattr("unlearn.evaluation.scorer.read_logits", limited)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answers = scorer.loglikelihood(requests(prompts()))
    assert [ll for ll, _ in answers] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    assert scorer.tokens_per_batch < 10_000
    assert any("going on with eval.tokens_per_batch=" in str(w.message) for w in caught)


def test_prompts_longer_than_the_context_lose_their_beginning_and_are_counted(tokenizer):
    model = MODELS["gpt2"](len(tokenizer))
    model.config.n_positions = 12
    asked = requests([("river " * 30, " soil"), ("river", " soil")])
    expected = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1).loglikelihood(asked, disable_tqdm=True)
    scorer = Scorer(ModelGroup(model), tokenizer, 1000)
    assert [ll for ll, _ in scorer.loglikelihood(asked)] == pytest.approx([ll for ll, _ in expected], abs=1e-4)
    assert scorer.truncated == {("river " * 30, " soil")}


def test_a_model_that_takes_no_tree_is_asked_row_by_row(tokenizer, monkeypatch):
    model = load_whole(SOURCE)
    real = model.forward

    def plain(input_ids, use_cache=False, **others):
        if others:
            raise TypeError("unexpected argument")
        return real(input_ids, use_cache=use_cache)

    expected = Scorer(ModelGroup(model), tokenizer, 1000).loglikelihood(requests(prompts()))
    monkeypatch.setattr(model, "forward", plain)
    scorer = Scorer(ModelGroup(model), tokenizer, 1000)
    assert not scorer.shares_prefixes
    found = scorer.loglikelihood(requests(prompts()))
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=1e-4)


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=12), st.integers(8, 30))
def test_every_sequence_is_a_path_of_one_tree(sequences, largest):
    trees = grow(sequences, largest)
    assert sorted(number for _, members in trees for number in members) == list(range(len(sequences)))
    for tree, members in trees:
        assert len(tree.ids) <= largest
        visible = tree.visible(len(tree.ids) + 2)
        for number, path in zip(members, tree.paths, strict=True):
            assert [tree.ids[i] for i in path] == sequences[number]
            assert [tree.positions[i] for i in path] == list(range(len(path)))
            for depth, node in enumerate(path):
                assert visible[node].nonzero().flatten().tolist() == sorted(path[: depth + 1])
        assert visible[-1].nonzero().flatten().tolist() == [len(tree.ids) + 1]


def test_a_sequence_longer_than_the_sliding_window_has_the_same_value_beside_shared_beginnings(tokenizer):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        initializer_range=0.3,
    )
    model = MistralForCausalLM(config).eval()
    long = SimpleNamespace(args=("the river of the soil " * 8, "harbour"), request_type="loglikelihood")
    short = [
        SimpleNamespace(args=("the river of the", f" {end}"), request_type="loglikelihood")
        for end in ("soil and harbour", "soil of", "harbour of the")
    ]

    def value_among(requests):
        scorer = Scorer(ModelGroup(model), tokenizer, 4096)
        scorer.prepare(requests)
        return scorer.loglikelihood(requests)[0][0]

    assert value_among([long]) == pytest.approx(value_among([long, *short]), abs=1e-4)
