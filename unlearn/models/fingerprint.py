"""Fingerprints of a checkpoint and of its tokenizer. They identify what a run used, whatever the path."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import extract_commit_hash

from unlearn.models.loading import Source, cached
from unlearn.storage.hashing import json_sha256

WHOLE_FILE_MAX = 1 << 26  # bytes; only samples of a larger file are hashed
SAMPLE_BYTES = 1 << 13
SAMPLES_PER_TENSOR = 8  # in safetensors
STRIDE = 1 << 18  # bytes from one sample to the next in other formats, which do not list their tensors
# What tokenizers treat differently: upper and lower case, composed and other accents, spaces, digits, other scripts.
PROBE = "An  unlearned\tModel's caf\u00e9 cafe\u0301, 12345.67 (na\u00efve)\n\u6a21\u578b \U0001f642 "


def checkpoint_fingerprint(source: Source) -> str:
    """The commit of a hub model, or a hash of the configuration and weight files of a local folder.

    Of files larger than 64 MiB only samples of each tensor are hashed. That is enough to notice a change of a single
    matrix, without reading all of a 70B model.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        return extract_commit_hash(cached(source, "config.json"), None) or "unknown"
    wanted = [source.gguf_file] if source.gguf_file else ["config.json", "*.safetensors", "*.bin"]
    digest = hashlib.sha256()
    for file in sorted(f for pattern in wanted for f in folder.glob(pattern)):
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        for part in _parts(file):
            digest.update(part)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary and of the token ids of a text, special tokens included.

    It does not depend on the format in which a library's version saves a tokenizer.
    """
    return json_sha256([tokenizer.get_vocab(), tokenizer(PROBE)["input_ids"]])


def _parts(file: Path) -> Iterator[bytes]:
    """The hashed parts of a file: all of a small one, else samples."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE_FILE_MAX:
            yield stream.read()
            return
        for start in _starts(stream, file.suffix, size):
            stream.seek(start)
            yield stream.read(SAMPLE_BYTES)


def _starts(stream: BinaryIO, suffix: str, size: int) -> Iterator[int]:
    """The starts of the samples: in each tensor of a safetensors file, and at regular distances in any other file.

    In other files the last sample is at the end, where PyTorch's files have checksums.
    """
    if suffix != ".safetensors":
        yield from range(0, size, STRIDE)
        yield size - SAMPLE_BYTES
        return
    header = int.from_bytes(stream.read(8), "little")
    tensors: dict[str, Any] = json.loads(stream.read(header))
    for begin, end in (about["data_offsets"] for name, about in tensors.items() if name != "__metadata__"):
        last = max(begin, end - SAMPLE_BYTES)  # the sample of a small tensor may reach into the next one
        gaps = SAMPLES_PER_TENSOR - 1
        yield from sorted({8 + header + begin + i * (last - begin) // gaps for i in range(SAMPLES_PER_TENSOR)})
