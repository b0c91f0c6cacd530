"""With any part of a task flipped its questions have another hash, or the same is asked and judged alike."""

import json
from copy import deepcopy

import pytest
import yaml
from lm_eval.evaluator import evaluate

from tests.conftest import write_jsonl
from unlearn.evaluation.suite import load_suite

ROWS = [{"q": f"Which {i}?", "choices": ["one", "other"], "answer": i % 2, "note": f"note {i}"} for i in range(3)]
CHOICE = {
    "task": "x_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
TEXT = {
    "task": "x_text",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}],
    "filter_list": [
        {"name": "f", "filter": [{"function": "regex", "regex_pattern": "(one|other)"}, {"function": "take_first"}]}
    ],
}
PLACED = {"task": "x_placed", "doc_to_text": "answer", "doc_to_target": "{{q}}"}  # the number of the right beginning
CODE = "import helper_of_judge\n\ndef f(doc, results):\n    return {'acc': helper_of_judge.RIGHT}\n"
OTHERS = {  # another value for each part of a task, by its dotted name
    CHOICE["task"]: {
        "doc_to_text": "{{q}} Say",
        "doc_to_choice": ["A", "B"],
        "doc_to_target": "{{1 - answer}}",
        "description": "Answer.",
        "target_delimiter": ":",
        "metric_list": [{"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}],
        "metric_list.0.aggregation": "median",
        "metric_list.0.higher_is_better": False,
        "metadata": {"version": 9},
        "tag": "other",
        "repeats": 2,
        "should_decontaminate": False,
    },
    TEXT["task"]: {
        "doc_to_text": "{{q}} Say",
        "doc_to_target": "{{choices[1 - answer]}}",
        "generation_kwargs.until": ["."],
        "generation_kwargs.max_gen_toks": 9,
        "metric_list.0.ignore_case": False,
        "metric_list.0.ignore_punctuation": True,
        "metric_list.0.regexes_to_ignore": [","],
        "metric_list.0.metric": "bleu",
        "filter_list.0.filter.0.regex_pattern": "(one)",
        "filter_list.0.filter.0.group_select": -1,
        "filter_list.0.name": "g",
        "filter_list": None,
        "repeats": 2,
        "target_delimiter": ":",
    },
}


class Answers:
    """A model that is asked nothing: likelihoods and texts by the length of what it is given."""

    rank, world_size = 0, 1

    def loglikelihood(self, requests):
        return [(-1.0 * ((len(r.args[0]) + 3 * len(r.args[1])) % 7), False) for r in requests]

    def generate_until(self, requests):
        return ["One, or other" if len(r.args[0]) % 2 else "the OTHER." for r in requests]


@pytest.fixture
def written(tmp_path):
    """Writes a task with its questions, and the files beside it, and loads it."""
    count = iter(range(1000))

    def write(task, rows=ROWS, files=(), names=None, **how):
        folder = tmp_path / str(next(count))
        folder.mkdir()
        write_jsonl(folder / "rows.jsonl", rows)
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
        text = yaml.safe_dump({**data, "test_split": "test", **task})
        (folder / "x.yaml").write_text(text.replace("'!function utils.f'", "!function utils.f"))
        for name, content in dict(files).items():
            (folder / name).write_text(content)
        return load_suite({"retain": names or [task["task"]]}, {"default": []}, include_path=str(folder), **how)

    return write


def scores(suite):
    """What lm-eval makes of the same answers."""
    for request in suite.instances("default"):
        request.resps, request.filtered_resps = [], {}
    results = evaluate(Answers(), suite.tasks["default"], bootstrap_iters=0)["results"]
    return {k: v for own in results.values() for k, v in own.items() if "stderr" not in k}


def asked(suite):
    return [request.args for request in suite.instances("default")]


def with_other(task, name, value):
    task = deepcopy(task)
    *path, last = [int(part) if part.isdigit() else part for part in name.split(".")]
    place = task
    for part in path:
        place = place[part]
    place[last] = value
    return task


@pytest.mark.parametrize("task", [CHOICE, TEXT], ids=lambda task: task["task"])
def test_with_a_part_of_a_task_flipped_there_is_another_hash_or_the_same_scores(written, task):
    plain = written(task)
    assert written(task).hashes == plain.hashes  # of the same content in another folder
    for name, value in OTHERS[task["task"]].items():
        other = written(with_other(task, name, value))
        assert other.hashes != plain.hashes or (asked(other), scores(other)) == (asked(plain), scores(plain)), name
    told = ("metric_list.0.ignore_case", "filter_list.0.filter.0.regex_pattern")
    for name in told if task is TEXT else ("metric_list.0.aggregation", "doc_to_target"):
        assert written(with_other(task, name, OTHERS[task["task"]][name])).hashes != plain.hashes, name


@pytest.mark.parametrize("task", [CHOICE, TEXT, {**CHOICE, **PLACED}], ids=lambda task: task["task"])
def test_with_a_part_of_a_question_flipped_its_hash_is_another_or_it_is_judged_alike(written, task):
    plain = written(task)
    hashes = plain.question_hashes("default", task["task"])
    for key, value in {"q": "Who?", "choices": ["one", "none"], "answer": 0, "note": "-"}.items():
        other = written(task, [ROWS[0], {**ROWS[1], key: value}, ROWS[2]])
        own = other.question_hashes("default", task["task"])
        assert {n for n in own if own[n] != hashes[n]} <= {1}, key
        assert own[1] != hashes[1] or (asked(other), scores(other)) == (asked(plain), scores(plain)), key
        assert (own[1] != hashes[1]) == (key != "note")  # no judge is told of it


@pytest.mark.parametrize("field", ["process_results", "metric_list.0.aggregation", "filter_list"])
def test_the_code_of_a_task_is_in_its_hash_with_what_it_imports(written, field, monkeypatch, tmp_path):
    """The judge may read any column of a question, so all of it is in the hash, too."""
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    monkeypatch.syspath_prepend(tmp_path / "own")
    helper = tmp_path / "own/helper_of_judge.py"
    helper.write_text("RIGHT = 1\n")
    custom = [{"name": "f", "filter": [{"function": "custom", "filter_fn": "!function utils.f"}]}]
    task = with_other(CHOICE, field, custom if field == "filter_list" else "!function utils.f")
    seen = [written(task, files={"utils.py": CODE}).hashes]
    seen.append(written(task, files={"utils.py": CODE}).hashes)
    seen.append(written(task, files={"utils.py": CODE.replace("RIGHT}", "RIGHT + 0}")}).hashes)
    helper.write_text("RIGHT = 0\n")
    seen.append(written(task, files={"utils.py": CODE}).hashes)
    seen.append(written(task, [{**row, "note": "-"} for row in ROWS], files={"utils.py": CODE}).hashes)
    assert seen[0] == seen[1]
    assert len({json.dumps(hashes) for hashes in seen}) == 4


def test_how_a_group_is_computed_is_in_the_hash(written):
    tasks = {"b.yaml": yaml.safe_dump({"include": "x.yaml", "task": "x_b"})}
    seen = set()
    for weighted in (True, False, True):
        metric = {"metric": "acc", "aggregation": "mean", "weight_by_size": weighted}
        group = {"group": "x_group", "task": ["x_choice", "x_b"], "aggregate_metric_list": [metric]}
        suite = written(CHOICE, files={**tasks, "g.yaml": yaml.safe_dump(group)}, names=["x_group"])
        seen.add(json.dumps(suite.hashes))
    assert len(seen) == 2
