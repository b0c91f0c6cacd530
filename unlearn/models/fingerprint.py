"""What a model's answers depend on: the content of the files that are read for it, and its tokenizer.

Names, sizes and times of files are not part of it, and nothing is sampled. What cannot be known equals nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from transformers import PreTrainedTokenizerBase

from unlearn.models.loading import Source, cached
from unlearn.storage.hashing import file_hash, file_sha256, json_sha256

SETTINGS = ("config.json", "generation_config.json", "adapter_config.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # transformers reads the first that is there, or its shards
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # peft reads them with the weights
SHA256 = re.compile("[0-9a-f]{64}")  # the hub's name of a large file's content
# What tokenizers treat differently: upper and lower case, composed and other accents, spaces, digits, other scripts.
PROBE = "An  unlearned\tModel's caf\u00e9 cafe\u0301, 12345.67 (na\u00efve)\n\u6a21\u578b \U0001f642 "


def states_key(source: Source, model_hash: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that a model's states and likelihoods depend on beside the texts: weights, code, arithmetic, tokenizer."""
    return {
        "model": model_hash,
        "dtype": str(source.torch_dtype),
        "device": source.torch_device.type,
        "attention": source.attn_implementation,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }


def checkpoint_fingerprint(source: Source) -> str:
    """A hash of the content of every file that is read for a model: configuration, weights, trusted code.

    Files of the hub are known by the hub's own hashes, also before they are downloaded. Files of a local folder are
    read as a whole.
    """
    weights = _weights(source)
    files = {name: _small(source, name) for name in SETTINGS}
    code = _code(source) if source.trust_remote_code else {}
    if not any(weights.values()):
        return f"unknown-{uuid4().hex}"
    return json_sha256([weights, files, code, _base_of_adapter(source)])


def _weights(source: Source) -> dict[str, str | None]:
    """The hashes of weight files. A GGUF file may have any name."""
    if source.gguf_file is not None:
        return {"gguf": _large(source, source.gguf_file)}
    custom_name = _small_json(source, "config.json").get("transformers_weights")  # a name of their own
    hashes: dict[str, str | None] = {}
    for name in (custom_name, *WEIGHTS):
        if isinstance(name, str) and not any(hashes.values()):
            index = name if name.endswith(".index.json") else f"{name}.index.json"
            shards = set(_small_json(source, index).get("weight_map", {}).values())
            hashes = {file: _large(source, file) for file in (name, *sorted(shards))} | {index: _small(source, index)}
    if cached(source, "adapter_config.json") is not None:
        hashes |= {name: _large(source, name) for name in ADAPTERS}
    return hashes


def _code(source: Source) -> dict[str, str]:
    """The hashes of the code of a checkpoint, and of other repositories that its configuration names."""
    named = [_small_json(source, name).get("auto_map", {}) for name in ("config.json", "tokenizer_config.json")]
    references = [text for of_file in named for value in of_file.values() for text in _texts(value)]
    others = sorted({reference.split("--")[0] for reference in references if "--" in reference})
    places = [(source.path, source.revision), *((other, None) for other in others)]
    return {f"{number} {name}": file for number, place in enumerate(places) for name, file in _code_files(*place)}


def _texts(value: Any) -> list[str]:
    """The classes of an entry of `auto_map`: a tokenizer has two."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _code_files(path: str, revision: str | None) -> Iterator[tuple[str, str]]:
    folder = Path(path)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(path, revision=revision, allow_patterns="*.py"))
        except Exception:  # the hub's errors share no base class
            yield path, uuid4().hex
            return
    yield from ((str(file.relative_to(folder)), file_hash(file)) for file in sorted(folder.rglob("*.py")))


def _base_of_adapter(source: Source) -> str | None:
    """The fingerprint of the model to which an adapter on the hub belongs. A local one lies beside its model."""
    base = _small_json(source, "adapter_config.json").get("base_model_name_or_path")
    if base is None or Path(source.path).is_dir() or base == source.path:
        return None
    return checkpoint_fingerprint(replace(source, path=base, revision=None))


def _small(source: Source, name: str) -> str | None:
    """The hash of a file that is downloaded if it is not here; None if there is none."""
    file = cached(source, name)
    return None if file is None else file_hash(Path(file))


def _small_json(source: Source, name: str) -> dict[str, Any]:
    """The object in a file; an empty one if it is not there or holds none."""
    file = cached(source, name)
    try:
        value = {} if file is None else json.loads(Path(file).read_bytes())
    except ValueError:  # transformers will say so
        value = {}
    return value if isinstance(value, dict) else {}


def _large(source: Source, name: str) -> str | None:
    """The hash of a file that is not downloaded for it; None if there is none."""
    folder = Path(source.path)
    if folder.is_dir():
        return file_hash(folder / name) if (folder / name).is_file() else None
    file = try_to_load_from_cache(source.path, name, revision=source.revision)
    if file is not None:
        return _of_the_hub(Path(file)) if isinstance(file, str) else None  # it is known not to be there
    if constants.HF_HUB_OFFLINE:
        return None  # so it is not read: `check_weights`
    try:
        etag = get_hf_file_metadata(hf_hub_url(source.path, name, revision=source.revision)).etag
    except Exception:  # there is no such file, or no network; the hub's errors share no base class
        return None
    if etag is not None and SHA256.fullmatch(etag):
        return etag
    small = cached(source, name)
    return None if small is None else _of_the_hub(Path(small))


def _of_the_hub(file: Path) -> str:
    """SHA-256 of a downloaded file, by which the hub names large ones."""
    blob = file.resolve()
    if SHA256.fullmatch(blob.name):
        return blob.name
    return file_sha256(blob)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that turns texts into token ids and back.

    The chat template is no part of it: what it makes of a dialogue or a question is hashed with the texts. Nor is the
    format in which a library's version saves a tokenizer.
    """
    settings = ("model_max_length", "padding_side", "truncation_side", "split_special_tokens")
    about = {name: repr(getattr(tokenizer, name, None)) for name in (*settings, "clean_up_tokenization_spaces")}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return json_sha256([type(tokenizer).__name__, special, about, _pipeline(tokenizer)])


def _pipeline(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Everything else: the tokenizer as it would be saved, or the content of its files."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()  # both are set anew with each text
        backend.no_padding()
        return backend.to_str()
    values = {
        key: value for key, value in tokenizer.init_kwargs.items() if key not in ("name_or_path", "chat_template")
    }
    files = [Path(value) for value in values.values() if isinstance(value, str) and Path(value).is_file()]
    plain = {k: v for k, v in values.items() if isinstance(v, (bool, int, float)) and k != "is_local"}
    return [tokenizer.get_vocab(), tokenizer(PROBE)["input_ids"], [file_hash(file) for file in files], plain]
