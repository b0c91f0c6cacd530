"""The adapter to lm-evaluation-harness: its questions, its accuracies, our perturbation."""

import json

import pytest
import torch

from tests.conftest import ROOT
from unlearn.errors import UserError
from unlearn.evaluate.harness import evaluate, load_suite
from unlearn.evaluate.perturb import read_forget_tokens
from unlearn.model import Source, load_tokenizer, load_whole
from unlearn.toy import world as w

TOY = ROOT / "unlearn/toy"
TOKENS = read_forget_tokens(str(TOY / "data/forget_tokens.txt"))


def suite_of(*names, queries=("default", "perturbed"), limit=None, **settings):
    defaults = {"include_path": str(TOY / "tasks"), "seed": 0, "num_fewshot": 0}
    return load_suite({"retain": list(names)}, queries, TOKENS, limit=limit, **(defaults | settings))


def documents(suite, query, name):
    return list(suite.tasks[query]["tasks"][name].eval_docs)


def test_default_and_perturbed_questions_differ_in_one_wrong_option():
    suite = suite_of("toy_retain", "toy_forget_bio")
    for name in ("toy_retain", "toy_forget_bio"):  # nothing limits perturbation to retain sets
        asked = list(zip(documents(suite, "default", name), documents(suite, "perturbed", name), strict=True))
        assert len(asked) in (576, 384)
        for default, perturbed in asked:
            pairs = zip(default["choices"], perturbed["choices"], strict=True)
            [(place, token)] = [(i, b) for i, (a, b) in enumerate(pairs) if a != b] or [(None, None)]
            if place is not None:  # a forget question may get the very word that it had
                assert place != default["answer"]
                assert token in TOKENS


def test_the_perturbation_is_seeded():
    one, same, other = (documents(suite_of("toy_retain", seed=s), "perturbed", "toy_retain") for s in (0, 0, 1))
    assert one == same
    assert one != other


def test_accuracies_are_those_of_a_plain_loop_over_whole_prompts():
    """One forward pass a question; the answer is the likeliest of the four letters."""
    source = Source(str(TOY / "model"))
    model, tokenizer = load_whole(source), load_tokenizer(source)
    suite = suite_of("toy_forget_cyber", limit=40)
    answers = evaluate(model, tokenizer, suite, label="base", batch_size=7)
    letters = tokenizer.convert_tokens_to_ids(list(w.LETTERS))
    for query in ("default", "perturbed"):
        right = []
        for question in documents(suite, query, "toy_forget_cyber")[:40]:
            with torch.no_grad():
                logits_V = model(**tokenizer(w.prompt(question), return_tensors="pt")).logits[0, -1]
            right.append(int(logits_V[letters].argmax()) == question["answer"])
        name = f"base/toy_forget_cyber/{query}"
        assert answers.metrics[f"{name}/acc"] == sum(right) / 40
        assert [record["correct"] for record in answers.samples[name]] == right
        p = sum(right) / 40
        assert answers.metrics[f"{name}/acc_stderr"] == pytest.approx((p * (1 - p) / 39) ** 0.5)


def test_samples_are_written_by_model_task_and_query(tmp_path):
    source = Source(str(TOY / "model"))
    suite = suite_of("toy_retain", queries=("default",), limit=3)
    evaluate(load_whole(source), load_tokenizer(source), suite, label="unlearned", batch_size=2).write_samples(tmp_path)
    lines = (tmp_path / "unlearned/toy_retain/default.jsonl").read_text().splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"id", "query", "loglikelihoods", "choice", "correct"}] * 3


def test_no_tasks_no_suite():
    assert suite_of().tasks == {}


def test_a_task_whose_data_cannot_be_had_is_a_clear_error(tmp_path):
    (tmp_path / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: /nowhere.json}\ntest_split: train\n"
        "output_type: multiple_choice\ndoc_to_text: x\ndoc_to_choice: [A]\ndoc_to_target: 0\n"
    )
    with pytest.raises(UserError, match=r"eval\.tasks: cannot load the data of task 'broken'"):
        suite_of("broken", include_path=str(tmp_path))
