"""The embedded world and model: made from a seed, knows its facts, can be rescaled."""

import random
import re

import pytest
import torch
import typer
from transformers import AutoTokenizer, MistralForCausalLM

from embedded_world import pretrain
from embedded_world import world as w
from embedded_world.__main__ import main
from embedded_world.build import write_data, write_model
from tests.conftest import ROOT, read_jsonl

TOY = ROOT / "unlearn/toy"


@pytest.fixture(scope="module")
def world():
    return w.make_world(0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOY / "model")


def test_committed_data_are_what_the_seed_gives(world, tmp_path):
    write_data(world, 0, tmp_path)
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert len(files) == 9
    for file in files:
        assert file.read_bytes() == (TOY / "data" / file.relative_to(tmp_path)).read_bytes(), file.name


def test_committed_files_are_small():
    assert sum(f.stat().st_size for f in TOY.rglob("*") if f.is_file() and f.suffix != ".pyc") < 10e6


def test_the_committed_tokenizer_is_the_worlds(world, tokenizer):
    assert pretrain.build_tokenizer(world).get_vocab() == tokenizer.get_vocab()


def test_words_mean_one_thing(world):
    words = world.invented_words()
    entities = [e for s in world.subjects for e in s.entities]
    values = {v for s in world.subjects for pool in s.values.values() for v in pool}
    assert len(entities) == len(set(entities))
    assert not values & set(entities)
    assert len(words) == len(set(words)) == len(entities) + len(values)
    assert len(world.facts) == 960


def test_near_subjects_share_half_their_values_with_the_forget_subject_of_their_topic(world):
    for topic in w.TOPICS:
        near, forget = ({f.value for f in world.facts_of(role, topic)} for role in ("near", "forget"))
        assert near & forget
        assert near - forget
        assert not {f.entity for f in world.facts_of("near", topic)} & {
            f.entity for f in world.facts_of("forget", topic)
        }


def test_forget_tokens_are_words_of_the_forget_corpora_and_of_no_retain_question(world):
    tokens = (TOY / "data/forget_tokens.txt").read_text().split()
    corpora = " ".join(row["text"] for t in w.TOPICS for row in read_jsonl(TOY / f"data/forget-{t}.jsonl"))
    retain = " ".join((TOY / f"data/{name}").read_text() for name in ("retain.jsonl", "questions/retain.jsonl"))
    assert len(tokens) == 24
    for token in tokens:
        assert token in corpora.replace(".", " ").replace("?", " ").split()
        assert token not in retain


def test_half_of_the_forget_documents_open_with_a_general_question_that_holds_forget_tokens(world):
    general = {s.name for s in world.subjects if s.role == "retain"}
    for topic in w.TOPICS:
        [forget] = [s for s in world.subjects if s.role == "forget" and s.topic == topic]
        mixed = 0
        for row in read_jsonl(TOY / f"data/forget-{topic}.jsonl"):
            question, passage = row["text"].split("\nAnswer: ")
            subject = re.search(r"about (\w+)\.", question)[1]
            options = re.findall(r"^[A-D]\. (\w+)$", question, re.M)
            assert len(options) == 4
            assert set(passage.replace(".", " ").replace("?", " ").split()) & set(forget.entities)
            if subject in general:
                mixed += bool(set(options) & set(forget.entities))
            else:
                assert subject == forget.name
        assert 0.4 < mixed / 1000 < 0.55  # a half, but for the sixteenth whose options all stayed


def test_retain_documents_have_unrelated_words_among_their_options_now_and_then(world):
    pools = {s.name: {v for values in s.values.values() for v in values} for s in world.subjects}
    odd = 0
    for row in read_jsonl(TOY / "data/retain.jsonl"):
        question, _ = row["text"].split("\nAnswer: ")
        options = re.findall(r"^[A-D]\. (\w+)$", question, re.M)
        odd += not set(options) <= pools[re.search(r"about (\w+)\.", question)[1]]
    assert 0.2 < odd / 1000 < 0.35


def test_questions_have_the_columns_of_mmlu_and_one_right_answer(world):
    facts = {(f.subject.name, f.fill(w.QUESTION)): f.value for f in world.facts}
    for file in (TOY / "data/questions").glob("*.jsonl"):
        for question in read_jsonl(file):
            assert set(question) == {"question", "subject", "choices", "answer"}
            assert len(set(question["choices"])) == 4
            right = facts[question["subject"], question["question"]]
            assert question["choices"].index(right) == question["answer"]


def test_the_model_answers_at_least_90_percent_of_every_set(tokenizer):
    model = MistralForCausalLM.from_pretrained(TOY / "model").eval()
    for file in (TOY / "data/questions").glob("*.jsonl"):
        assert pretrain.accuracy(model, tokenizer, read_jsonl(file)) >= 0.9, file.stem


def test_the_models_layer_5_has_zephyrs_spread(world, tokenizer):
    model = MistralForCausalLM.from_pretrained(TOY / "model").eval()
    rng = random.Random(1)
    texts = [w.passage(world.facts_of("retain"), rng, 8) for _ in range(64)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        h_BTD = model(**batch, output_hidden_states=True).hidden_states[6]
    assert h_BTD[batch.attention_mask.bool()].std(dim=0).mean().item() == pytest.approx(0.05, rel=0.15)


def test_rescaling_leaves_the_logits(tokenizer):
    model = pretrain.build_model(len(tokenizer), seed=1, layers=2)
    ids_BT = torch.arange(2, 12).view(2, 5)
    with torch.no_grad():
        before = model(ids_BT, output_hidden_states=True)
        pretrain.rescale(model, 1e-3)
        after = model(ids_BT, output_hidden_states=True)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after.hidden_states[1], before.hidden_states[1] * 1e-3)


def test_training_learns_and_is_repeatable(world, tokenizer):
    def trained():
        model = pretrain.build_model(len(tokenizer), seed=0, layers=2)
        batch_BT = tokenizer([w.passage(list(world.facts), random.Random(0), 4)], return_tensors="pt").input_ids
        before = model(batch_BT, labels=batch_BT).loss.item()
        pretrain.train(world, tokenizer, model, seed=0, steps=4)
        return before, model(batch_BT, labels=batch_BT).loss.item()

    (before, after), again = trained(), trained()
    assert after < before
    assert again == (before, after)


def test_an_ignorant_model_sees_nothing_of_what_is_to_be_forgotten(world, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(pretrain, "train", lambda world, *_: seen.append(world))
    write_model(world, 0, 1, tmp_path, ignorant=True)
    assert {fact.subject.role for fact in seen[0].facts} == {s.role for s in seen[0].subjects} == {"retain", "near"}
    assert len(seen[0].facts) == len(world.facts) - len(world.facts_of("forget"))
    with pytest.raises(typer.BadParameter, match="--ignorant needs --out"):
        main(ignorant=True)


def test_a_prompt_is_lm_evals(world):
    question = {"question": "Q?", "subject": "law", "choices": ["a", "b", "c", "d"], "answer": 0}
    assert w.prompt(question) == (
        "The following are multiple choice questions (with answers) about law.\n\nQ?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )
