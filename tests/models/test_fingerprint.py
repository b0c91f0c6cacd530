"""A model is known by the content of the files that are read for it, all of it, and by nothing else."""

import json
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.conftest import ROOT
from unlearn.experiment import run
from unlearn.models.fingerprint import checkpoint_fingerprint, tokenizer_fingerprint
from unlearn.models.loading import Source
from unlearn.runs.prefetch import prefetch
from unlearn.storage import hashing

TOY = ROOT / "unlearn/toy/model"
TEXTS = ("A  b, c.\tD 12", "the river bank", "<s> z </s>", "cafe\u0301 Caf\u00e9")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path):
    shutil.copytree(TOY, tmp_path / "model")
    return Source(str(tmp_path / "model"))


def flipped(file):
    """Versions of a JSON file, in each of which one value is another one; long dictionaries are sampled."""

    def versions(value):
        if isinstance(value, dict):
            for key in list(value)[:: 1 + len(value) // 40]:
                yield {k: v for k, v in value.items() if k != key}
                yield from ({**value, key: other} for other in versions(value[key]))
        elif isinstance(value, list) and value:
            yield value[1:]
            for i in {0, len(value) // 2, len(value) - 1}:
                yield from ([*value[:i], other, *value[i + 1 :]] for other in versions(value[i]))
        elif isinstance(value, bool):
            yield not value
        elif isinstance(value, (int, float)):
            yield value + 1
        elif isinstance(value, str):
            yield value + "x"
        else:
            yield "x"

    return versions(json.loads(file.read_text()))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_each_part_of_a_models_files_is_in_its_fingerprint(model, name):
    file = Path(model.path) / name
    before, content = checkpoint_fingerprint(model), file.read_bytes()
    for place in range(0, len(content), 1 + len(content) // 50):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert checkpoint_fingerprint(model) != before, (name, place)
    file.write_bytes(content)
    os.utime(file, (0, 0))
    assert checkpoint_fingerprint(model) == before


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_with_a_part_of_the_tokenizer_flipped_there_is_another_fingerprint_or_the_same_tokens(model, name):
    def tokens(tokenizer):
        ids = tokenizer([*TEXTS, "unlearned river"], padding=True)["input_ids"]
        lengths = [tokenizer(text, truncation=True, max_length=3)["input_ids"] for text in TEXTS]
        return ids, lengths, tokenizer.batch_decode(ids), tokenizer.model_max_length

    file = Path(model.path) / name
    plain = AutoTokenizer.from_pretrained(model.path)
    before, given = tokenizer_fingerprint(plain), tokens(plain)
    assert tokenizer_fingerprint(plain) == before  # whatever it was asked last
    others = 0
    for version in flipped(file):
        file.write_text(json.dumps(version))
        try:
            other = AutoTokenizer.from_pretrained(model.path)
            same = tokens(other) == given
        except BaseException as error:  # refused, by transformers or by a panic of tokenizers
            if isinstance(error, KeyboardInterrupt):
                raise
            continue
        others += tokenizer_fingerprint(other) != before
        assert same or tokenizer_fingerprint(other) != before, version
    assert others > 3


def test_the_name_of_the_folder_and_of_a_file_is_not_in_it(model, tmp_path):
    before = checkpoint_fingerprint(model)
    Path(model.path).rename(tmp_path / "moved")
    assert checkpoint_fingerprint(Source(str(tmp_path / "moved"))) == before
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "moved" / name).write_bytes(b"GGUF, the same")
    ggufs = [Source(str(tmp_path / "moved"), gguf_file=name) for name in ("a.gguf", "b.gguf")]
    assert checkpoint_fingerprint(ggufs[0]) == checkpoint_fingerprint(ggufs[1])


def test_shards_and_their_index_are_in_it(model):
    folder = Path(model.path)
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    shutil.copy(folder / "model-1.safetensors", folder / "model-2.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    seen = {checkpoint_fingerprint(model)}
    (folder / "model-2.safetensors").write_bytes(b"other")
    seen.add(checkpoint_fingerprint(model))
    index.write_text(json.dumps({"weight_map": {"b": "model-1.safetensors", "a": "model-2.safetensors"}}))
    seen.add(checkpoint_fingerprint(model))
    (folder / "pytorch_model.bin").write_bytes(b"not read where there is safetensors")
    seen.add(checkpoint_fingerprint(model))
    assert len(seen) == 3


def test_the_code_of_a_checkpoint_is_in_it_where_it_is_trusted(model):
    (Path(model.path) / "deeper").mkdir()
    files = [Path(model.path) / name for name in ("modeling_x.py", "deeper/scale.py")]
    for trusted, versions in ((True, 3), (False, 1)):
        seen = set()
        for scales in ((1, 1), (-1, 1), (1, -1)):
            for file, scale in zip(files, scales, strict=True):
                file.write_text(f"SCALE = {scale}\n")
            seen.add(checkpoint_fingerprint(replace(model, trust_remote_code=trusted)))
        assert len(seen) == versions


def test_a_large_file_is_read_as_a_whole_and_again_when_it_has_changed(model, monkeypatch):
    monkeypatch.setattr(hashing, "LARGE", 1000)
    file = Path(model.path) / "model.safetensors"
    before, about = checkpoint_fingerprint(model), file.stat()
    with file.open("r+b") as stream:
        stream.seek(about.st_size // 3)
        stream.write(b"1")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))  # size and time are as before
    assert checkpoint_fingerprint(model) != before


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An offline cache of the hub: `add(repository, commit, {name: content})`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def add(repository, files, commit=COMMIT):
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        for folder in (place / "refs", place / "blobs", place / "snapshots" / commit):
            folder.mkdir(parents=True, exist_ok=True)
        (place / "refs/main").write_text(commit)
        for name, content in files.items():
            blob = place / "blobs" / sha256(content).hexdigest()
            blob.write_bytes(content)
            (place / "snapshots" / commit / name).symlink_to(blob)
        return Source(repository)

    return add


def test_files_of_the_hub_are_known_by_their_content(hub):
    source = hub("owner/quantised", {"m.Q4.gguf": b"4", "m.Q8.gguf": b"8"})  # without config.json
    hub("owner/other", {"m.Q4.gguf": b"5"})
    four, eight = (checkpoint_fingerprint(replace(source, gguf_file=f"m.Q{bits}.gguf")) for bits in (4, 8))
    other = checkpoint_fingerprint(Source("owner/other", gguf_file="m.Q4.gguf"))
    assert len({four, eight, other}) == 3
    hub("owner/quantised", {"m.Q4.gguf": b"4", "m.Q8.gguf": b"9", "README.md": b"new"}, "f" * 40)
    assert checkpoint_fingerprint(replace(source, gguf_file="m.Q4.gguf")) == four  # the commit is no part of it
    assert checkpoint_fingerprint(replace(source, gguf_file="m.Q8.gguf")) != eight


def test_trusted_code_of_the_hub_is_in_it_also_that_of_another_repository(hub):
    model = {"model.safetensors": b"w", "config.json": b'{"auto_map": {"AutoModel": "owner/code--modeling.Model"}}'}
    source = replace(hub("owner/model", {**model, "own.py": b"A = 1"}), trust_remote_code=True)
    seen = set()
    for commit, code in (("a" * 40, b"SCALE = 1"), ("b" * 40, b"SCALE = -1")):
        hub("owner/code", {"modeling.py": code}, commit)
        seen.add(checkpoint_fingerprint(source))
    hub("owner/model", {**model, "own.py": b"A = 2"}, "c" * 40)
    assert len({*seen, checkpoint_fingerprint(source)}) == 3


def test_what_is_not_known_equals_nothing(hub):
    source = hub("owner/model", {"config.json": b"{}"})
    assert checkpoint_fingerprint(source) != checkpoint_fingerprint(source)


def test_a_model_of_the_hub_runs_offline(hub, short):
    hub("owner/toy", {file.name: file.read_bytes() for file in TOY.iterdir()})
    config = short("model.path=owner/toy", "train.steps=2", "eval=toy", "eval.limit=2")
    prefetch(config)
    assert (run(config) / "metrics.json").is_file()
