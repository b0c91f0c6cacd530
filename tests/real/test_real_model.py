"""A real language model on real texts: experiment=smollm2_real, in a few steps. Needs `make smollm2`."""

import json

import pytest

from tests.conftest import ROOT, read_metrics
from unlearn.evaluation.tokens import token_count
from unlearn.experiment import run
from unlearn.models.loading import Source, load_tokenizer


@pytest.mark.slow
def test_a_real_model_forgets_texts_it_was_not_trained_on_and_keeps_others(conf, tmp_path):
    few = ("train.steps=100", "eval.texts.documents=8", "eval.texts.words=40", "~eval.texts.corpora.near")
    asked = (
        "eval.queries=[default,perturbed]",
        "eval.asked_of={perturbed: [retain_text]}",
        "tracker=none",
        f"output_root={tmp_path}",
    )
    metrics = read_metrics(run(conf("experiment=smollm2_real", "method=adaptive_rmu", "rna=none", *few, *asked)))
    for corpus in ("microbiology", "security"):
        assert metrics[f"unlearned/forget_text_{corpus}/default/base_low"] > 1
    assert metrics["unlearned/retain_text_wikipedia/default/base_difference"] < 0.5
    costs = [metrics[f"{model}/retain_text_wikipedia/perturbed/default_difference"] for model in ("base", "unlearned")]
    assert costs[1] > costs[0] > 0


@pytest.mark.slow
def test_numbers_of_tokens_are_those_of_its_tokenizer(conf):
    """Alone it has the tokenizer by which the terms of unlearn/real/data were matched."""
    tokenizer = load_tokenizer(Source.of(conf("experiment=smollm2_real").model))
    counts = json.loads((ROOT / "tests/real/smollm2_tokens.json").read_text())
    assert {term: token_count(tokenizer, term) for term in counts} == counts
