"""Scores and samples: their files, their means over roles, and the names for people."""

import json
import subprocess
import sys
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT
from unlearn.errors import UserError
from unlearn.records.samples import LATER, Sample, read_samples, sample_frame, write_samples
from unlearn.records.scores import Score, flat, in_order, nested, read_scores, role_means, score_frame, write_scores

VALUE = Score("unlearned", "retain", "mmlu", None, "default", "acc", 0.5, stderr=0.1, n=60)
DIFFERENCE = replace(VALUE, value=-0.25, against="base", stderr=None, low=-0.3, high=-0.2, p=0.01)
PART = replace(VALUE, task="mmlu_anatomy", part_of="mmlu", value=0.25)
QUESTION = Sample("base", "retain", "mmlu_anatomy", "default", 3, "ab12", True, choice=1, loglikelihoods=[-2.0, -0.5])
TEXT = Sample("base", "retain_text", "retain_text_wiki", "default", 0, "cd34", nats=6.0, tokens=4)


def test_scores_and_samples_are_read_as_they_were_written(tmp_path):
    write_scores(tmp_path, [VALUE, DIFFERENCE, PART])
    perturbed = replace(TEXT, model="unlearned", inserted="virus", choices=[5, 0, 7, 7], agreement=0.25)
    write_samples(tmp_path, [QUESTION, TEXT, perturbed])
    assert read_scores(tmp_path) == [VALUE, DIFFERENCE, PART]
    assert read_samples(tmp_path) == [QUESTION, TEXT, perturbed]


def test_results_are_read_without_threads(tmp_path):
    """Threads of pyarrow that hold Python's memory may outlive the interpreter, which then aborts."""
    write_samples(tmp_path, [QUESTION, TEXT] * 100)
    code = """
import pathlib, psutil, sys
from unlearn.records import samples
threads = psutil.Process().num_threads
before, folder = threads(), pathlib.Path(sys.argv[1])
assert len(samples.read_samples(folder)) == 200 and samples.guessing_accuracy(folder, "retain") == 0.5
sys.exit(threads() - before)"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_no_rows_are_a_table_too(tmp_path):
    write_scores(tmp_path, [])
    assert read_scores(tmp_path) == []
    assert list(score_frame([]).columns) == pq.read_schema(tmp_path / "scores.parquet").names


@pytest.mark.parametrize("content", [b"", b"PAR1", b"torn"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "scores.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"scores\.parquet: not a readable Parquet file"):
        read_scores(tmp_path)


def test_a_file_of_other_columns_is_refused(tmp_path):
    write_samples(tmp_path, [QUESTION])
    (tmp_path / "samples.parquet").rename(tmp_path / "scores.parquet")
    with pytest.raises(UserError, match="its columns are not those of this version: model, role, task"):
        read_scores(tmp_path)


def test_a_row_without_a_value_is_refused(tmp_path):
    write_scores(tmp_path, [VALUE, replace(VALUE, value=None)])
    with pytest.raises(UserError, match=r"scores\.parquet: a row has no value"):
        read_scores(tmp_path)


def test_paired_tests_compare_correctness_and_nats_a_token():
    assert QUESTION.value == 1.0
    assert TEXT.value == 1.5
    assert replace(QUESTION, correct=None, score=0.3).value is None
    assert sample_frame([QUESTION, TEXT])["value"].tolist() == [1.0, 1.5]


def test_parts_of_groups_do_not_count_in_a_roles_mean():
    other = replace(VALUE, task="arc", value=0.75)
    assert role_means([VALUE, DIFFERENCE, PART, other], "acc") == {("retain", "default"): 0.625}
    assert role_means([VALUE, DIFFERENCE, PART], "acc", against="base") == {("retain", "default"): -0.25}
    assert role_means([VALUE, replace(other, query="perturbed")], "acc") == {}  # each lacks one of the two tasks


def test_people_read_models_tasks_queries_and_measures():
    metrics = nested([VALUE, DIFFERENCE, PART])
    assert metrics["unlearned"]["mmlu"]["default"] == {
        "acc": 0.5,
        "acc_stderr": 0.1,
        "base_difference": -0.25,
        "base_low": -0.3,
        "base_high": -0.2,
        "base_p": 0.01,
    }
    assert flat(json.loads(json.dumps(metrics)))["unlearned/mmlu_anatomy/default/acc"] == 0.25


def test_rows_are_shown_by_role_task_query_and_model():
    base = replace(VALUE, model="base")
    perturbed = replace(base, query="perturbed")
    assert in_order([base, perturbed, VALUE]) == [base, VALUE, perturbed]


def test_a_file_of_an_earlier_version_lacks_later_columns(tmp_path):
    write_samples(tmp_path, [replace(TEXT, inserted="virus", agreement=0.5), QUESTION])
    file = tmp_path / "samples.parquet"
    pq.write_table(pq.read_table(file).drop_columns(list(LATER)), file)
    assert read_samples(tmp_path) == [TEXT, QUESTION]
