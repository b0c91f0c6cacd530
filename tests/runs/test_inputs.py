"""What a run read is known by its content: right answers, tokenizer and paths, too."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

from tests.conftest import ROOT, read_metrics, write_jsonl
from unlearn.analysis.collect import read_run
from unlearn.analysis.compare import compare_runs
from unlearn.config.identity import run_folder
from unlearn.errors import UserError
from unlearn.experiment import run
from unlearn.records.scores import read_scores
from unlearn.runs.evaluation import evaluate_run
from unlearn.runs.folder import RunFolder
from unlearn.sweeps.finished import finished

TOY = ROOT / "unlearn/toy"
ASKED = ("+eval.tasks.retain=[x_key]", "eval.queries=[default]")


@pytest.fixture
def key(tmp_path):
    """A task of four of the embedded world's questions, and a function that sets which option of each is right."""
    lines = (TOY / "data/questions/retain.jsonl").read_text().splitlines()[:4]
    rows = [json.loads(line) for line in lines]
    right = [row["answer"] for row in rows]
    file = tmp_path / "tasks/rows.jsonl"

    def write(folder=tmp_path / "tasks", wrong=0):
        """So many questions get another option as the right one."""
        answers = [(a + 1) % 4 if i < wrong else a for i, a in enumerate(right)]
        folder.mkdir(exist_ok=True)
        write_jsonl(folder / file.name, [row | {"answer": a} for row, a in zip(rows, answers, strict=True)])
        (folder / "x_key.yaml").write_text(
            f"task: x_key\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder / file.name}}}}}\n"
            "test_split: test\noutput_type: multiple_choice\n"
            'doc_to_text: "{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}'
            '\\nAnswer:"\ndoc_to_choice: [A, B, C, D]\ndoc_to_target: answer\nnum_fewshot: 0\n'
            "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        )
        return folder

    return write


@pytest.fixture
def asked(short, key):
    def build(*overrides, folder=None):
        return short(*ASKED, f"eval.include_path={folder or key()}", *overrides)

    return build


def accuracy(folder, model="base"):
    return read_metrics(folder)[f"{model}/x_key/default/acc"]


def test_a_corrected_answer_key_is_another_input(asked, key, tmp_path):
    folder = run(asked())
    assert accuracy(folder) == 1
    tasks = key(wrong=3)
    with pytest.raises(UserError, match=r"differ in questions\.default\.retain"):
        run(asked(folder=tasks))
    other = run(asked("eval.name=corrected", folder=tasks))
    assert accuracy(other) == 0.25  # not the answers by the former key, from the cache
    assert json.loads((other / "run.json").read_text())["training_from"] == folder.name
    comparison = compare_runs(folder, other)
    assert comparison.differing["retain", "default"] == 3
    assert comparison.results["retain", "default"].questions == 1


def test_a_run_over_files_at_another_place_looks_at_them(asked, key, tmp_path):
    config = asked()
    folder = run(config)
    assert finished({0: config}) == ([0], {})
    elsewhere = asked(folder=key(tmp_path / "elsewhere", wrong=1))
    done, errors = finished({0: config, 1: elsewhere})
    assert done == [0]
    assert "differ in questions.default.retain" in errors[1]
    assert run(asked(folder=key(tmp_path / "elsewhere"))) == folder  # of the same content: nothing to do
    os.utime(tmp_path / "tasks/rows.jsonl", (0, 0))
    assert finished({0: config}) == ([0], {})


def test_a_failed_run_whose_questions_have_changed_keeps_its_training(asked, key, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr("unlearn.evaluation.evaluator.evaluate", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(asked())
    folder = run_folder(asked())
    delta = (folder / "delta.safetensors").stat().st_mtime_ns
    assert run(asked(folder=key(wrong=2))) == folder
    assert (folder / "delta.safetensors").stat().st_mtime_ns == delta
    assert accuracy(folder) == 0.5


def test_an_evaluation_made_before_a_run_was_resumed_stays(short, asked, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("killed")

    config = asked()
    with monkeypatch.context() as broken:
        broken.setattr("unlearn.evaluation.evaluator.evaluate", fails)
        with pytest.raises(RuntimeError, match="killed"):
            run(config)
    evaluate_run(RunFolder(run_folder(config)), ["eval=toy", "eval.limit=2"])
    folder = run(config)
    assert {"unlearned/x_key/default/acc", "train/steps"} <= read_metrics(folder).keys()
    later = [read_scores(evaluation.folder) for evaluation in read_run(folder).evaluations[1:]]
    assert "toy_retain" in {score.task for scores in later for score in scores}


def test_a_later_evaluation_of_a_corrected_key_has_a_place_of_its_own(asked, key):
    folder = run(asked())
    how = ["eval=none", *ASKED, f"eval.include_path={key(wrong=1)}"]
    once = evaluate_run(RunFolder(folder), how)
    key(wrong=2)
    twice = evaluate_run(RunFolder(folder), how)
    assert (accuracy(folder), accuracy(once), accuracy(twice)) == (1, 0.75, 0.5)


def test_another_tokenizer_is_another_input(short, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TOY / "model", model)
    config = short(f"model.path={model}")
    run(config)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"differ in .*tokenizer"):
        run(config)


def test_texts_longer_than_the_context_are_refused_where_positions_are_learned(short, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(TOY / "model")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 8, "num_attention_heads": 2}
    learned = GPT2Config(n_positions=16, **sizes)
    rotary = LlamaConfig(max_position_embeddings=16, intermediate_size=32, **sizes)
    for name, config in (("learned", learned), ("rotary", rotary)):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    told = r"data\.topics\.bio\.max_length: a text has \d+ tokens, but the model's context is 16\."
    with pytest.raises(UserError, match=f"{told} Set max_length to at most 16"):
        run(short(f"model.path={tmp_path / 'learned'}"))
    lengths = [f"data.topics.{t}.{key}=16" for t in ("bio", "cyber") for key in ("max_length", "retain_max_length")]
    assert RunFolder(run(short(f"model.path={tmp_path / 'learned'}", *lengths))).done
    assert RunFolder(run(short(f"model.path={tmp_path / 'rotary'}", "model.name=rotary"))).done
    assert re.search(told, capsys.readouterr().err.replace("\n", " "))


def test_a_padding_token_that_the_model_lacks_is_not_used(short, tmp_path):
    """Many a tokenizer has [PAD] added, for which the model has no embedding."""
    model = tmp_path / "model"
    shutil.copytree(TOY / "model", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"pad_token": "[ADDED]"})
    tokenizer.save_pretrained(model)
    config = short(f"model.path={model}")
    assert tokenizer.pad_token_id >= json.loads((model / "config.json").read_text())["vocab_size"]
    plain = run(short("model.name=plain"))
    added = run(config)
    one, other = (load_file(folder / "delta.safetensors") for folder in (plain, added))
    assert all(torch.equal(one[name], other[name]) for name in one)
