"""Evaluating a model in memory and its variants: `evaluate` for a user's own code. There is no second copy of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.arguments import check_integer
from unlearn.config.schema import TextConfig
from unlearn.errors import UserError
from unlearn.evaluation import harness
from unlearn.evaluation.harness import against_base, with_agreement
from unlearn.evaluation.questions import check_token_ids
from unlearn.evaluation.suite import Suite, load_suite
from unlearn.evaluation.texts import load_passages
from unlearn.evaluation.tokens import read_tokens
from unlearn.models.cutting import CutModel
from unlearn.models.group import ModelGroup
from unlearn.records.answers import Answers
from unlearn.records.names import text_tasks
from unlearn.records.scores import Score, score_frame, why_not_finite
from unlearn.training.variant import Variant

if TYPE_CHECKING:
    import pandas as pd

Texts = Mapping[str, Mapping[str, str | Path | Sequence[str]]]  # role -> name -> a file, or texts


def evaluate(
    model: CutModel,
    variants: Sequence[Variant] = (),
    *,
    tasks: Mapping[str, Sequence[str]] | None = None,
    texts: Texts | None = None,
    forget_tokens: Sequence[str] | str = (),
    subset: int | None = None,
    num_fewshot: int = 0,
    include_path: str | None = None,
    local_dir: str | None = None,
    tokens_per_batch: int = 8192,
    seed: int = 0,
) -> pd.DataFrame:
    """Ask the base model and its variants the same questions. The model in memory is as before.

    Args:
        model: the whole model, with its tokenizer.
        variants: what `train` returned; none evaluates the base model alone.
        tasks: {role: names of tasks or groups of lm-eval}, for example {"retain": ["mmlu"], "forget": ["wmdp_bio"]}.
        texts: {role: {name: held-out texts}}, a file or a list of strings; measured in nats a token and, of variants,
            by agreement: the share of next tokens at which their first choice is the base model's.
        forget_tokens: words, or a file with one a line. With some, everything is asked once more in perturbed
            queries: an incorrect option becomes such a word, or it is inserted into a text.
        subset: so many questions of each role; None: all.
        num_fewshot: answered examples in front of a question.
        include_path: a folder with task definitions beside lm-eval's.
        local_dir: a folder with MMLU and WMDP instead of the hub.
        tokens_per_batch: of a forward pass, padding included.
        seed: of perturbed queries and of `subset`.

    Returns:
        A row for each score: the columns of `unlearn.records.scores.Score`, and `variant`, the variant's place in
        `variants`; missing for the base model. Accuracies are shares of 1. A task with log-likelihoods that are not
        finite has their number as "not_finite" in place of its measures, and a warning says so.

    Raises:
        UserError: the model is not whole or has no tokenizer, there is nothing to ask, a task or file cannot be read,
            or a variant's training stopped early.
    """
    if not model.is_whole or model.tokenizer is None:
        raise UserError("an evaluation needs the whole model and its tokenizer: CutModel.load(..., whole=True).")
    check_integer("tokens_per_batch", tokens_per_batch, at_least=1)
    for number, variant in enumerate(variants):
        if variant.error is not None:
            raise UserError(f"variants[{number}] stopped in training ({variant.error}): leave it out.")
    words: dict[str, list[str]] = {"default": []}
    if forget_tokens:
        words["perturbed"] = read_tokens(forget_tokens)
    corpora = {role: dict(named) for role, named in (texts or {}).items()}
    suite = load_suite(
        tasks or {},
        words,
        include_path=include_path,
        local_dir=local_dir,
        seed=seed,
        num_fewshot=num_fewshot,
        subset=subset,
        passages=load_passages(TextConfig(), words, corpora=corpora, seed=seed),
        text_roles=text_tasks(corpora),
    )
    if not suite:
        raise UserError("there is nothing to ask: give tasks or texts.")
    check_token_ids(suite, model.tokenizer, len(model.model.get_input_embeddings().weight))
    [base] = _ask(model, [{}], suite, "base", tokens_per_batch)
    answers = _ask(model, [v.weights for v in variants], suite, "unlearned", tokens_per_batch) if variants else []
    for own in (base, *answers):
        sentence = why_not_finite(own.scores)
        if sentence is not None:
            warnings.warn(sentence, stacklevel=2)
    compared = [with_agreement(base, own, suite) for own in answers]
    scores = [base.scores, *(own.scores + against_base(base, own, suite) for own in compared)]
    return _frame(scores)


def _ask(model: CutModel, weights: Sequence[Mapping], suite: Suite, label: str, tokens_per_batch: int) -> list[Answers]:
    assert model.tokenizer is not None
    group = ModelGroup(model.model, weights)
    return harness.evaluate(group, model.tokenizer, suite, label=label, tokens_per_batch=tokens_per_batch)


def _frame(scores: Sequence[Sequence[Score]]) -> pd.DataFrame:
    """The scores of the base model, then of each variant, with the variant's number."""
    import pandas as pd

    frame = score_frame([score for own in scores for score in own])
    numbers = [None if number == 0 else number - 1 for number, own in enumerate(scores) for _ in own]
    frame.insert(0, "variant", pd.array(numbers, dtype="Int64"))
    return frame
