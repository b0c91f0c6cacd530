"""MMLU and WMDP from a folder: lm-eval's own tasks on it, mistakes named with file and line."""

import csv
import json

import datasets
import pytest

from tests.conftest import write_jsonl
from unlearn.errors import UserError
from unlearn.evaluation.local_data import load_local
from unlearn.evaluation.suite import COMPLETE, _tasks_in, load_suite
from unlearn.evaluation.task_names import tasks_folder

ROWS = [("Is 'NA' a word?", ["None", "1, 2", "3\n4", "yes"], 3), ("1 + 1?", ["1", "2", "3", "4"], 1)]
BOTH = {"default": [], "perturbed": ["SARS-CoV-2"]}


def write_csv(file, rows, header=("question", "choice0", "choice1", "choice2", "choice3", "answer")):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows([question, *choices, answer] for question, choices, answer in rows)


def test_lm_evals_own_task_reads_the_folder(tmp_path):
    write_csv(tmp_path / "test/anatomy_test.csv", ROWS)
    write_csv(tmp_path / "dev/anatomy_dev.csv", ROWS[:1])
    suite = load_suite({"retain": ["mmlu_anatomy"]}, BOTH, local_dir=str(tmp_path))
    [first, *_] = suite.tasks["default"]["tasks"]["mmlu_anatomy"].instances
    assert first.args[0] == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "Is 'NA' a word?\nA. None\nB. 1, 2\nC. 3\n4\nD. yes\nAnswer:"
    )
    assert len(list(suite.instances("perturbed"))) == 8
    few = load_suite({"retain": ["mmlu_anatomy"]}, {"default": []}, local_dir=str(tmp_path), num_fewshot=1)
    context = next(few.instances("default")).args[0]
    assert context.count("Is 'NA' a word?") == 2
    assert "Answer: D" in context


def test_wmdp_from_jsonl_and_everything_from_parquet(tmp_path):
    rows = [{"question": q, "choices": c, "answer": a} for q, c, a in ROWS]
    tmp_path = tmp_path / "a[1]"  # no pattern, but a name
    (tmp_path / "wmdp").mkdir(parents=True)
    write_jsonl(tmp_path / "wmdp/wmdp-bio.jsonl", rows)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "wmdp/wmdp-cyber.parquet")
    (tmp_path / "mmlu/anatomy").mkdir(parents=True)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "mmlu/anatomy/test-00000-of-00001.parquet")
    roles = {"forget": ["wmdp_bio", "wmdp_cyber"], "retain": ["mmlu_anatomy"]}
    suite = load_suite(roles, {"default": []}, local_dir=str(tmp_path))
    for task in suite.tasks["default"]["tasks"].values():
        assert [(d["question"], d["choices"], d["answer"]) for d in task.eval_docs] == ROWS
    with pytest.raises(UserError, match="no dev questions of 'wmdp-bio'"):
        load_suite({"forget": ["wmdp_bio"]}, {"default": []}, local_dir=str(tmp_path), num_fewshot=1)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("question,choice0\n", r"anatomy_test.csv:1: there is no column answer, choice1, choice2, choice3"),
        ("question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,4\n", r"csv:2: answer='4' is not allowed"),
        ("question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,\n", r"csv:2: answer='' is not allowed"),
        ("question,choice0,choice1,choice2,choice3,answer\nq,a,b,c,d,BC\n", r"csv:2: answer='BC' is not allowed"),
        ("question,choice0,choice1,choice2,choice3,answer\nq,a,b,c\n", r"csv:2: a question has four options"),
        ("question,choice0,choice1,choice2,choice3,answer\n,a,b,c,d,1\n", r"csv:2: there is no question"),
        ("question,choice0,choice1,choice2,choice3,answer\ncafé,a,b,c,d,1\n", r"csv:2: not UTF-8 text"),
        ("question,choice0,choice1,choice2,choice3,answer\n", r"anatomy_test.csv holds no question"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, content, told):
    (tmp_path / "test").mkdir()
    (tmp_path / "test/anatomy_test.csv").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=told):
        load_local(tmp_path, "anatomy")


def test_other_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"no test questions of 'virology'. Looked for .*virology_test\.csv"):
        load_local(tmp_path, "virology")
    (tmp_path / "wmdp-bio.jsonl").write_text(json.dumps({"question": "q", "choices": ["a", "b", "c"], "answer": 0}))
    with pytest.raises(UserError, match=r"wmdp-bio.jsonl:1: a question has four options"):
        load_local(tmp_path, "wmdp-bio")
    (tmp_path / "wmdp-bio.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"wmdp-bio.jsonl:1: not valid JSON"):
        load_local(tmp_path, "wmdp-bio")
    with pytest.raises(UserError, match=r"eval\.local_dir=/nowhere: there is no such folder"):
        load_suite({"retain": ["mmlu_anatomy"]}, BOTH, local_dir="/nowhere")
    with pytest.raises(UserError, match=r"no test questions of 'anatomy'"):
        load_suite({"retain": ["mmlu_anatomy"]}, BOTH, local_dir=str(tmp_path))


def test_unusual_characters_and_a_byte_order_mark_are_read(tmp_path):
    asked = ("one\u2028two\x85three", list("abcd"), 1)
    row = dict(zip(("question", "choices", "answer"), asked, strict=True))
    lines = "\r\n".join([json.dumps(row, ensure_ascii=False)] * 2)
    (tmp_path / "wmdp-bio.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    write_csv(tmp_path / "test/anatomy_test.csv", [asked])
    file = tmp_path / "test/anatomy_test.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_local(tmp_path, "wmdp-bio")["test"]["question"][:] == [asked[0]] * 2
    assert load_local(tmp_path, "anatomy")["test"]["question"][:] == [asked[0]]


def test_letters_are_answers_too(tmp_path):
    write_csv(tmp_path / "test/anatomy_test.csv", [("q", list("abcd"), answer) for answer in ("C", "d", " 1 ")])
    assert load_local(tmp_path, "anatomy")["test"]["answer"][:] == [2, 3, 1]


@pytest.mark.slow  # alone scans all of lm-eval's tasks, which takes ten seconds
def test_lm_evals_mmlu_and_wmdp_need_no_task_of_another_folder():
    everything = _tasks_in(all_of_lm_evals=True).task_index
    complete = _tasks_in(*(str(tasks_folder() / name) for name in COMPLETE)).task_index
    assert {"mmlu", "mmlu_stem", "mmlu_anatomy", "wmdp_bio"} <= complete.keys()
    assert complete == {name: everything[name] for name in complete}
