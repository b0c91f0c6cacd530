"""Corpora: every document that cannot be used is named with its file and line."""

import bz2
import gzip
import hashlib
import json
import re
from types import SimpleNamespace

import datasets
import pyarrow
import pytest
import torch

from tests.conftest import ROOT, write_jsonl
from unlearn.data.batches import batches, pad
from unlearn.data.corpora import (
    Reading,
    Topic,
    check_rows,
    documents,
    first_tokens,
    load_texts,
    load_topic,
)
from unlearn.data.counting import documents_needed
from unlearn.errors import UserError
from unlearn.evaluation.questions import load_questions
from unlearn.models.loading import Source, load_tokenizer

KEY = "data.topics.bio.forget"
PLAIN = Reading()
TOKENIZER = load_tokenizer(Source(str(ROOT / "unlearn/toy/model")))


def read_corpus(path, key, reading=PLAIN):
    """All documents of a corpus, and its hash."""
    texts, places = zip(*documents(path, key, reading), strict=True)
    whole = load_texts(path, key, TOKENIZER, max_length=1, documents=0, reading=reading)
    return SimpleNamespace(texts=list(texts), places=list(places), sha256=whole.sha256)


@pytest.fixture(scope="module")
def tokenizer():
    return TOKENIZER


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", '{"text": "x"}\n{"body": "y"}\n', 'a.jsonl:2: there is no "text"'),
        ("a.jsonl", '{"text": "x"}\n["text"]\n', 'a.jsonl:2: there is no "text"'),
        ("a.jsonl", '{"text": "x"}\n{"text": 3}\n', 'a.jsonl:2: "text" is int, not a string'),
        ("a.jsonl", '{"text": "x"}\n{"text": "  \\t"}\n', 'a.jsonl:2: "text" is blank'),
        ("a.jsonl", '{"text": "x"}\n   \n{"text": "y"}\n', "a.jsonl:2: the line is blank"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', "a.jsonl:2: not UTF-8 text"),
        ("a.jsonl", "", "a.jsonl has no documents"),
        ("a.txt", " \n\n", "a.txt has no documents"),
        ("a.json", '[{"text": "x"},\n{"text": }]', "a.json:2: not valid JSON"),
        (
            "a.json",
            '[{"text": "x"}, {"body": "y"}]',
            'a.json, entry 2: there is no "text"; it has body. Write {"text": "..."}, or',
        ),
        ("a.csv", "body\nx\n", 'a.csv: there is no "text"; it has body. Write'),
        ("a.parquet", "no parquet", "a.parquet: cannot be read as parquet"),
        ("a.jsonl.zst", "no zst", "a.jsonl.zst: cannot be decompressed"),
        ("a.pdf", "x", "a.pdf: unknown format. Allowed: .jsonl, .json, .txt, .csv, .parquet, a folder"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": "ab\\ud800"}\n',
            "a.jsonl:2: invalid character U+D800 at offset 2. Fix the text",
        ),
        ("a.txt", "x\ny\0\n", "a.txt:2: invalid character U+0000 at offset 1"),
    ],
)
def test_a_bad_corpus_is_named_with_file_and_line(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_corpus(str(file), KEY)
    assert message in str(error.value)
    assert KEY in str(error.value)


TWO = ["river harbour", "ruler \u00e9"]


def jsonl(texts, end="\n"):
    return "".join(json.dumps({"text": text, "id": 1}) + end for text in texts).encode()


def as_table(kind, file):
    table = datasets.Dataset.from_dict({"id": [1, 2], "text": TWO})
    getattr(table, f"to_{kind}")(str(file))


WRITERS = {
    "a.jsonl": lambda file: file.write_bytes(jsonl(TWO)),
    "b.jsonl": lambda file: file.write_bytes(b"\xef\xbb\xbf" + jsonl(TWO, "\r\n")),  # as Windows programs write it
    "a.jsonl.gz": lambda file: file.write_bytes(gzip.compress(jsonl(TWO))),
    "a.jsonl.bz2": lambda file: file.write_bytes(bz2.compress(jsonl(TWO))),
    "a.jsonl.zst": lambda file: file.write_bytes(pyarrow.compress(jsonl(TWO), "zstd", asbytes=True)),
    "a.json": lambda file: file.write_text(json.dumps([{"text": text} for text in TWO], indent=1)),
    "b.json": lambda file: file.write_text(json.dumps(TWO)),
    "c.json": lambda file: file.write_bytes(jsonl(TWO)),
    "a.txt": lambda file: file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TWO).encode()),
    "a.csv": lambda file: as_table("csv", file),
    "a.parquet": lambda file: as_table("parquet", file),
    "folder": lambda file: file.mkdir() or [(file / f"{i}.txt").write_text(text) for i, text in enumerate(TWO)],
}

LINES, TABLE = "a45c9bc60853", "c687a26eee14"
SHA256 = {
    "a.jsonl": LINES, "b.jsonl": "087019f36a93", "a.jsonl.gz": LINES, "a.jsonl.bz2": LINES, "a.jsonl.zst": LINES,
    "a.json": "51b327161af6", "b.json": "d2307f8d749f", "c.json": LINES, "a.txt": "505d290df55e",
    "a.csv": TABLE, "a.parquet": TABLE, "folder": "e93ecea6bf38",
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(tmp_path, tokenizer, name):
    WRITERS[name](tmp_path / name)
    corpus = read_corpus(str(tmp_path / name), KEY)
    assert corpus.texts == TWO
    assert all(name in place for place in corpus.places)
    assert corpus.sha256[:12] == SHA256[name]  # where it changes, all runs get other folders
    first = load_texts(str(tmp_path / name), KEY, tokenizer, max_length=9, documents=1)
    assert (len(first.rows), first.size, first.sha256) == (1, 2, corpus.sha256)
    if name == "a.jsonl.gz":
        WRITERS["a.jsonl"](tmp_path / "a.jsonl")
        assert corpus.sha256 == read_corpus(str(tmp_path / "a.jsonl"), KEY).sha256


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path, kind):
    datasets.Dataset.from_dict({"text": ["another file"]}).to_parquet(str(tmp_path / "a1.parquet"))
    datasets.Dataset.from_dict({"text": ["another file"]}).to_csv(str(tmp_path / "a1.csv"))
    as_table(kind, tmp_path / f"a[1].{kind}")
    assert read_corpus(str(tmp_path / f"a[1].{kind}"), KEY).texts == TWO


def test_another_column_and_replaced_characters(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "a\\ud800b", "text": "x"}\n')
    corpus = read_corpus(str(tmp_path / "a.jsonl"), KEY, Reading("body", "replace"))
    assert corpus.texts == ["a\ufffdb"]


@pytest.mark.parametrize("text", ["river harbour " * 5000, "river" * 30000, "a\n" * 40000, "x " + "y" * 100000])
def test_the_first_tokens_of_a_long_text_are_those_of_the_whole(tokenizer, text):
    whole = tokenizer(text)["input_ids"]
    assert first_tokens(text, tokenizer, 32) == whole[:32]


def test_of_a_long_text_little_is_tokenised(tokenizer):
    seen = []

    class Watched:
        truncation_side = "right"

        def __call__(self, text, **kwargs):
            seen.append(len(text))
            return tokenizer(text, **kwargs)

    assert len(first_tokens("river harbour " * 100_000, Watched(), 16)) == 16
    assert max(seen) < 2000


def test_a_missing_file_and_a_malformed_hub_name(tmp_path):
    with pytest.raises(UserError, match="there is no such file"):
        read_corpus(str(tmp_path / "none.jsonl"), KEY)
    with pytest.raises(UserError, match="write hub:REPOSITORY:CONFIGURATION:SPLIT"):
        read_corpus("hub:cais/wmdp", KEY)


def test_a_data_set_that_cannot_be_had_says_how_to_get_it_and_where_to_put_it(monkeypatch):
    """The hub is out of reach: what `load_dataset` raises for a gated data set is raised by hand (a mock)."""
    import datasets

    def refuse(*_args, **_kwargs):
        raise datasets.exceptions.DatasetNotFoundError("gated")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError) as error:
        read_corpus("hub:cais/wmdp-bio-forget-corpus:default:train", KEY)
    for part in ("huggingface.co/datasets/cais/wmdp-bio-forget-corpus", "hf auth login", f"{KEY}=FILE.jsonl"):
        assert part in str(error.value)


def test_corpora_keep_file_order_and_are_hashed(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(" = Title = \n\n first \nsecond\n")
    corpus = read_corpus(str(file), KEY)
    assert corpus.texts == [" = Title = ", " first ", "second"]
    assert corpus.places[1] == f"{file}:3"
    assert corpus.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def topic_of(tmp_path, tokenizer, texts, **settings):
    file = tmp_path / "a.txt"
    file.write_text("\n".join(texts))
    defaults = {"max_length": 8, "retain_max_length": 4, "documents": 2, "on_exhausted": "error"}
    return load_topic("bio", str(file), str(file), tokenizer, **(defaults | settings))


def test_documents_are_cut_to_their_parts_length(tmp_path, tokenizer):
    topic = topic_of(tmp_path, tokenizer, ["river harbour"] * 2 + ["river " * 20])
    assert [len(ids) for ids in topic.forget] == [3, 3]  # with <s>; the third is not needed
    longer = topic_of(tmp_path, tokenizer, ["river " * 20] * 2)
    assert {len(ids) for ids in longer.forget} == {8}
    assert {len(ids) for ids in longer.retain} == {4}


def test_a_text_without_tokens_of_its_own_is_named(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"a\.txt:2: this text gives no tokens with the model's tokenizer"):
        topic_of(tmp_path, tokenizer, ["river", "<s> <s>"])


def test_a_topic_of_texts_in_memory_is_that_of_their_file(tmp_path, tokenizer):
    texts = ["river harbour", "river " * 20]
    from_file = topic_of(tmp_path, tokenizer, texts)
    topic = Topic.from_texts("bio", texts, texts, tokenizer, max_length=8, retain_max_length=4)
    assert (topic.name, topic.forget, topic.retain) == ("bio", from_file.forget, from_file.retain)
    assert Topic.from_texts("bio", texts, texts, tokenizer, max_length=8).retain == from_file.forget
    other = Topic.from_texts("bio", texts[::-1], texts, tokenizer)
    assert topic.sha256["forget"] != other.sha256["forget"]
    assert topic.sha256["retain"] == other.sha256["retain"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], r"topic bio, retain: a list of at least one text is needed, not \[\]"),
        ("river", "a list of at least one text is needed, not 'river'"),
        (["river", 3], "topic bio, retain: text 1: .* is int, not a string"),
        (["river", " "], "text 1: .* is blank"),
        (["river\0"], "text 0: .*U\\+0000"),
        (["<s>"], "text 0: this text gives no tokens"),
    ],
)
def test_a_bad_text_in_memory_is_named(tokenizer, texts, message):
    with pytest.raises(UserError, match=message):
        Topic.from_texts("bio", ["river"], texts, tokenizer)
    if texts == ["river\0"]:
        Topic.from_texts("bio", ["river"], texts, tokenizer, errors="replace")


def test_steps_beyond_the_data(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"has 2 documents, but training needs 3.*data\.on_exhausted=cycle"):
        topic_of(tmp_path, tokenizer, ["river", "ruler"], documents=3)
    topic = topic_of(tmp_path, tokenizer, ["river", "ruler"], documents=3, on_exhausted="cycle")
    taken = [b.forget.ids_BT[0, 1].item() for b in batches([topic], steps=4, batch_size=1, pad_id=1, side="right")]
    assert taken[:2] == taken[2:]
    assert taken[0] != taken[1]


def test_documents_are_read_as_they_are_taken(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "river"}\nno JSON\n')
    assert next(documents(str(file), KEY)) == ("river", f"{file}:1")


def test_texts_that_look_like_dates_are_texts(tmp_path):
    for name in ("a.jsonl", "a.json"):
        file = write_jsonl(tmp_path / name, [{"text": "2026-11-30"}, {"text": "2026-11-30 09:00:00"}])
        assert read_corpus(str(file), KEY).texts == ["2026-11-30", "2026-11-30 09:00:00"]


def test_token_ids_beyond_the_embeddings_are_refused():
    check_rows({KEY: [[1, 2], [9]]}, 10, first_counted=True)
    with pytest.raises(UserError, match=rf"{KEY}: token id 9, but the model has embeddings for ids below 9 only"):
        check_rows({"other": [[1]], KEY: [[1, 2], [9]]}, 9, first_counted=True)


def test_texts_of_which_no_token_is_counted_are_refused_or_their_share_is_said(capsys):
    check_rows({KEY: [[1], [3, 4]]}, 10, first_counted=True)
    check_rows({KEY: [[1, 2], [3, 4]]}, 10, first_counted=False)
    assert capsys.readouterr().err == ""
    check_rows({KEY: [[1, 2], [3], [4, 5]]}, 10, first_counted=False)
    assert f"{KEY}: 33.3% of the texts have one token" in capsys.readouterr().err
    with pytest.raises(UserError, match=rf"{KEY}: each text has one token"):
        check_rows({KEY: [[1], [3]]}, 10, first_counted=False)


def test_step_t_takes_topic_t_mod_n_and_its_batch_t_div_n():
    topics = [Topic(n, [[i] for i in range(s, s + 6)], [[9]] * 6, {}) for n, s in (("bio", 10), ("cyber", 20))]
    taken = [
        (b.step, b.topic, b.forget.ids_BT.flatten().tolist())
        for b in batches(topics, steps=5, batch_size=2, pad_id=0, side="right")
    ]
    assert taken == [
        (0, "bio", [10, 11]),
        (1, "cyber", [20, 21]),
        (2, "bio", [12, 13]),
        (3, "cyber", [22, 23]),
        (4, "bio", [14, 15]),
    ]
    assert documents_needed(steps=5, batch_size=2, topics=2) == 6


def test_padding_goes_where_it_is_told():
    right, left = pad([[1, 2, 3], [4]], 0, "right"), pad([[1, 2, 3], [4]], 0, "left")
    assert right.ids_BT.tolist() == [[1, 2, 3], [4, 0, 0]]
    assert left.ids_BT.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert torch.equal(right.mask_BT, torch.tensor([[True] * 3, [True, False, False]]))
    assert torch.equal(left.mask_BT, right.mask_BT[:, [2, 1, 0]])


def test_texts_that_the_tokenizer_does_not_know_are_told(tmp_path, conf, tokenizer, capsys):
    for name, unknown in (("river harbour", False), ("online Wikipedia encyclopaedia", True)):
        file = write_jsonl(tmp_path / "a.jsonl", [{"text": f"the {name}"}] * 2)
        load_texts(str(file), KEY, tokenizer, max_length=9, documents=2)
        assert ("unknown to the model's tokenizer" in capsys.readouterr().err) is unknown
    config = conf("eval=real", "eval.texts.documents=2", "eval.queries=[default]")
    load_questions(config, Source.of(config.model), tokenizer)
    assert re.search(r"retain_text_wikipedia: \d+% of the tokens are unknown", capsys.readouterr().err)


DIALOGUE = [{"role": "user", "content": "river harbour"}, {"role": "assistant", "content": "ruler mountain"}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} \n{% endfor %}"


@pytest.fixture
def chatty():
    """A tokenizer with a template that writes BOS, as it does itself before texts."""
    tokenizer = load_tokenizer(Source(str(ROOT / "unlearn/toy/model")))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def reading_of(conf, tokenizer, *more):
    return Reading.of(conf("data.chat_template=true", *more).data, tokenizer)


def test_dialogues_are_written_in_the_tokenizers_template_with_one_bos(tmp_path, conf, chatty):
    file = write_jsonl(tmp_path / "a.jsonl", [{"messages": DIALOGUE}] * 2)
    reading = reading_of(conf, chatty, "data.text_column=messages")
    topic = load_topic(
        "bio", *[str(file)] * 2, chatty, max_length=40, retain_max_length=6, documents=2, on_exhausted="error",
        reading=reading,
    )  # fmt: skip
    expected = chatty.apply_chat_template(DIALOGUE, tokenize=True, return_dict=False)
    assert expected[0] == chatty.bos_token_id
    assert expected.count(chatty.bos_token_id) == 1
    assert topic.forget == [expected] * 2
    assert topic.retain == [expected[:6]] * 2
    corpus = read_corpus(str(file), KEY, reading_of(conf, None, "data.text_column=messages"))
    assert corpus.texts == ["river harbour\nruler mountain"] * 2  # for lists of words


@pytest.mark.parametrize("value", ["river", [], ["river"], [{"role": "user"}], [{"role": "user", "content": 3}]])
def test_what_is_no_dialogue_is_named_with_file_and_line(tmp_path, conf, chatty, value):
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": DIALOGUE}, {"text": value}])
    with pytest.raises(UserError, match=r'a\.jsonl:2: "text" is not a dialogue, and data\.chat_template=true\.'):
        read_corpus(str(file), KEY, reading_of(conf, chatty))


def test_a_dialogue_that_the_template_refuses_is_named(tmp_path, conf, chatty):
    chatty.chat_template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('begin with user') }}{% endif %}x"
    file = write_jsonl(tmp_path / "a.jsonl", [{"text": DIALOGUE}, {"text": DIALOGUE[1:]}])
    with pytest.raises(
        UserError, match=r"a\.jsonl:2: the model's chat template does not accept this dialogue: begin with"
    ):
        read_corpus(str(file), KEY, reading_of(conf, chatty))


def test_the_last_documents_are_held_out_from_training(tokenizer, tmp_path):
    texts = ["river harbour", "harbour river", "harbour", "river"]
    whole = topic_of(tmp_path, tokenizer, texts).forget
    assert topic_of(tmp_path, tokenizer, texts, held_out=2).forget == whole
    assert topic_of(tmp_path, tokenizer, texts, held_out=3, on_exhausted="cycle").forget == whole[:1]
    with pytest.raises(
        UserError, match=r"4 documents, but training needs 2 documents, and data\.held_out=3 more are kept back"
    ):
        topic_of(tmp_path, tokenizer, texts, held_out=3)
    with pytest.raises(UserError, match=r"4 documents, but training needs 2 documents, and data\.held_out=4"):
        topic_of(tmp_path, tokenizer, texts, held_out=4, on_exhausted="cycle")


def test_a_tokenizer_without_a_template_cannot_read_dialogues(conf, tokenizer):
    with pytest.raises(UserError, match=r"data\.chat_template=true, but the model's tokenizer has no chat template"):
        reading_of(conf, tokenizer)
