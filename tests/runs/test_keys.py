"""With any part of what a run reads flipped there is another key, or the model is given the same tokens."""

import json
import shutil
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from tests.conftest import ROOT, write_jsonl
from unlearn.config.identity import identity, run_folder
from unlearn.errors import UserError
from unlearn.evaluation.evaluator import Evaluator
from unlearn.evaluation.harness import MaxLogitPlan
from unlearn.evaluation.questions import Questions
from unlearn.evaluation.suite import Suite
from unlearn.evaluation.texts import Passage
from unlearn.models.loading import Source, load_tokenizer
from unlearn.records.answers import Answers
from unlearn.runs.folder import OF_TRAINING, RunFolder, same_inputs
from unlearn.runs.inputs import hashes_of_run, load_inputs
from unlearn.runs.takeover import find_training
from unlearn.sweeps.finished import finished

TOY = ROOT / "unlearn/toy/model"
WORDS = ("river", "harbour", "mountain", "ruler", "spice", "vessel", "grain", "sauce", "cooking", "name", "has", "of")
NO_MAXLOGIT = MaxLogitPlan()
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}{# a comment #}"
)


@pytest.fixture
def corpus(tmp_path):
    """Twelve documents, of which a run of three steps reads all, each cut to eight tokens."""
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": f"{word} " * 12} for word in WORDS])


@pytest.fixture
def of_corpus(short, corpus):
    def build(*overrides, path=corpus):
        topic = f"+data.topics.a={{forget: {path}, retain: {path}, max_length: 8}}"
        return short("data=jsonl", topic, "data.held_out=0", *overrides)

    return build


def read(config):
    return hashes_of_run(config, load_inputs(config))


def finish(config):
    """The folder of a run that has read its inputs and is done; nothing is computed."""
    folder = RunFolder(run_folder(config))
    with folder.locked():
        folder.start({"eval": {}}, identity(config), read(config))
        folder.record["trained"] = {"steps": 3}
        folder.file("delta.safetensors").touch()
        folder.finish(Answers([], []))
    return folder


def test_with_a_line_of_a_corpus_flipped_there_is_another_key_or_the_same_tokens(of_corpus, corpus):
    config, lines = of_corpus(), corpus.read_text().splitlines()
    before = load_inputs(config)
    for number, line in enumerate(lines):
        for old, new in ((WORDS[number], "geography"), ('"text"', ' "text"')):
            corpus.write_text("\n".join([*lines[:number], line.replace(old, new, 1), *lines[number + 1 :]]) + "\n")
            other = load_inputs(config)
            same = other.topics[0].forget == before.topics[0].forget
            assert same == (new != "geography")
            assert same_inputs({"inputs": before.hashes}, other.hashes, OF_TRAINING) == same, (number, new)
    corpus.write_text("\n".join(line[:-3] + 'x"}' for line in lines) + "\n")  # behind the cut
    assert same_inputs({"inputs": before.hashes}, load_inputs(config).hashes, OF_TRAINING)


def test_with_a_part_of_a_chat_template_flipped_there_is_another_key_or_the_same_tokens(of_corpus, corpus, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TOY, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    dialogue = [{"role": "user", "content": "river"}, {"role": "assistant", "content": "stone"}]
    write_jsonl(corpus, [{"text": dialogue} for _ in WORDS])
    config = of_corpus(f"model.path={model}", "data.chat_template=true")

    def templated(template):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(model)
        return load_inputs(config)

    before, seen = templated(TEMPLATE), []
    for old, new in (("bos_token", "eos_token"), ("'role'", "'content'"), (": ", " - "), ("a comment", "another")):
        other = templated(TEMPLATE.replace(old, new, 1))
        seen.append(other.topics[0].forget == before.topics[0].forget)
        assert same_inputs({"inputs": before.hashes}, other.hashes, OF_TRAINING) == seen[-1], new
    assert seen == [False, False, False, True]


def test_another_template_is_no_finished_run_and_no_training_to_take_over(of_corpus, corpus, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TOY, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(model)
    write_jsonl(corpus, [{"text": [{"role": "user", "content": f"{word} of"}]} for word in WORDS])
    chat, other = (of_corpus(f"model.path={model}", "data.chat_template=true", *o) for o in ((), ("eval=toy",)))
    folder = finish(chat)
    assert find_training(other, read(chat)) is not None
    tokenizer.chat_template = "geography {{ messages[0]['content'] }}"
    tokenizer.save_pretrained(model)
    with pytest.raises(UserError, match=r"differ in rows\.a\.forget, rows\.a\.retain\."):
        folder.verify(read(chat))
    assert find_training(other, read(chat)) is None


def test_a_sweep_knows_what_is_finished_by_the_content_of_what_it_reads(of_corpus, corpus, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(corpus)
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": f"other {word}"} for word in WORDS])
    config, elsewhere = of_corpus(path=link), of_corpus(path=corpus)
    assert finished({0: config}) == ([], {})
    finish(config)
    assert finished({0: config, 1: elsewhere}) == ([0, 1], {})
    assert finished({0: of_corpus("seed=1", path=link), 1: of_corpus("train.force=true", path=link)}) == ([], {})
    assert finished({0: replace(config, attacks=["lens"])}) == ([], {})  # its own process looks for their files
    link.unlink()
    link.symlink_to(other)
    done, errors = finished({0: config, 1: elsewhere})
    assert done == [1]
    assert errors.keys() == {0}
    assert "differ in data.a.forget, data.a.retain, rows.a.forget, rows.a.retain" in errors[0]


def test_a_sweep_misses_a_file_of_a_corpus_folder(of_corpus, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(2 * len(WORDS)):
        (folder / f"{number:02}.txt").write_text(f"{WORDS[number % 12]} river")
    config = of_corpus(path=folder)
    finish(config)
    assert finished({0: config}) == ([0], {})
    (folder / "00.txt").unlink()
    done, errors = finished({0: config})
    assert done == []
    assert "rows.a.forget" in errors[0]


def test_an_own_method_is_known_by_its_file_and_by_what_it_imports(of_corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_method.py").write_text("import own_helper\n")
    config = of_corpus()
    config.method = {**config.method, "_target_": "own_method.Mine"}
    inputs = load_inputs(of_corpus())
    seen = set()
    for helper, deeper in ((1, 1), (2, 1), (2, 2), (2, 2)):
        (tmp_path / "own_helper.py").write_text(f"from deeper.part import A\nB = {helper}\n")
        (tmp_path / "deeper").mkdir(exist_ok=True)
        (tmp_path / "deeper/part.py").write_text(f"A = {deeper}\n")
        seen.add(hashes_of_run(config, inputs)["method"])
    assert len(seen) == 3


def test_what_is_asked_along_the_course_is_an_input(of_corpus):
    inputs, seen = load_inputs(of_corpus()), set()
    for text in ("a", "b"):  # of a document that the evaluation leaves out
        passages = {"default": {"text": [Passage(9, text, "rest", text)]}}
        course = Suite({}, {}, {}, None, passages, {"retain_text": ["text"]})
        questions = Questions({}, Suite({}, {}, {}, None), course)
        seen.add(json.dumps(replace(inputs, questions=questions).hashes))
    assert len(seen) == 2


def test_with_anything_flipped_that_answers_depend_on_the_base_model_is_asked_again(tmp_path, monkeypatch):
    source = Source(str(TOY), device="cpu")
    tokenizer = load_tokenizer(source)

    def place(source=source, model_hash="a", tokens=256, maxlogit=NO_MAXLOGIT, hashes=""):
        suite = Suite({}, {}, {}, None)
        suite.__dict__["hashes"] = {"default": {"retain": hashes}}
        evaluator = Evaluator(
            source, tokenizer, suite, model_hash=model_hash, tokens_per_batch=tokens, maxlogit=maxlogit, cache=tmp_path
        )
        return evaluator._cached_place()

    places = [
        place(),
        place(replace(source, dtype="bfloat16")),
        place(replace(source, attn_implementation="eager")),
        place(model_hash="b"),
        place(tokens=16384),
        place(maxlogit=MaxLogitPlan(["retain"], ["default"], 1)),
        place(hashes="other"),
    ]
    monkeypatch.setattr("unlearn.evaluation.evaluator.version", lambda name: "9")
    assert len({*places, place()}) == len(places) + 1
    monkeypatch.undo()
    assert place(replace(source, path="/moved", max_memory={"cpu": "1GiB"})) == places[0]
