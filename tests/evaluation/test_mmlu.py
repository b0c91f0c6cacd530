"""Perturbed queries over all of MMLU (`--mmlu-dir DIR`, with test/SUBJECT_test.csv in it), else over a sample."""

from pathlib import Path

import pytest

from unlearn.evaluation.local_data import load_local
from unlearn.evaluation.perturb import perturb

# A few questions of the kinds that MMLU has: numbers, long options, "None of the above", equal options.
SAMPLE = [
    {"question": question, "choices": choices, "answer": answer}
    for question, choices, answer in (
        ("The set of all x with x*x = 1 in Z_12?", ["{1}", "{1, 11}", "{1, 5, 7, 11}", "all"], 2),
        ("Which is a noble gas?", ["Neon", "Iron", "None of the above", "Both A and B"], 0),
        ("1 + 1?", ["2", "2", "3", "4"], 1),
    )
]


def documents(request):
    folder = request.config.getoption("--mmlu-dir")
    if folder is None:
        return [("sample", i, d) for i, d in enumerate(SAMPLE)]
    subjects = sorted(f.name.removesuffix("_test.csv") for f in (Path(folder) / "test").glob("*_test.csv"))
    return [(s, i, d) for s in subjects for i, d in enumerate(load_local(Path(folder), s)["test"])]


@pytest.mark.parametrize("count", [1, 2])
def test_the_right_answer_never_changes_nor_its_place_and_exactly_count_others_do(request, count):
    asked = documents(request)
    for task, question, document in asked:
        key = {"seed": 0, "task": task, "question": question, "count": count}
        changed = perturb(document, ["SARS-CoV-2", "plasmid"], **key)
        assert changed["answer"] == document["answer"]
        assert changed["choices"][document["answer"]] == document["choices"][document["answer"]]
        assert changed["question"] == document["question"]
        differing = [i for i, (a, b) in enumerate(zip(document["choices"], changed["choices"], strict=True)) if a != b]
        assert len(differing) == count
        assert all(changed["choices"][i] in ("SARS-CoV-2", "plasmid") for i in differing)
        assert changed == perturb(document, ["SARS-CoV-2", "plasmid"], **key)
    if request.config.getoption("--mmlu-dir"):
        assert len(asked) == 14042
