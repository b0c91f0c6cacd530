"""Fingerprints of a checkpoint and of its tokenizer: they say what a run used, wherever the files are."""

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

SMALL = 1 << 26  # bytes up to which a file is hashed whole
SAMPLE = 1 << 13  # bytes that are hashed at a time of a larger one,
SAMPLES, APART = 8, 1 << 18  # so often of a tensor, or, where it is not known where tensors lie, so many bytes apart
COARSE, COARSE_SAMPLES = 1 << 20, 64  # of older versions
# Letters of both cases, accents composed and not, spaces, digits, other scripts: what tokenizers treat differently.
PROBE = "An  unlearned\tModel's caf\u00e9 cafe\u0301, 12345.67 (na\u00efve)\n\u6a21\u578b \U0001f642 "


def checkpoint_fingerprint(source: Source, *, coarse: bool = False) -> str:
    """The commit of a hub model; for a local folder a hash of its configuration and weight files.

    Of files larger than 64 MiB, samples of each tensor are hashed: enough to notice that a single matrix is another,
    without reading all of a 70B model. `coarse`: of such files only 64 samples of 1 MiB, as in older versions, which
    tells base models apart, but may not tell one from its export.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        return extract_commit_hash(cached(source, "config.json"), None) or "unknown"
    wanted = [source.gguf_file] if source.gguf_file else ["config.json", "*.safetensors", "*.bin"]
    digest = hashlib.sha256()
    for file in sorted(f for pattern in wanted for f in folder.glob(pattern)):
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        for part in _parts(file, coarse):
            digest.update(part)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary and of the token ids of a text, special tokens included.

    It does not depend on how a version of a library writes a tokenizer down.
    """
    return json_sha256([tokenizer.get_vocab(), tokenizer(PROBE)["input_ids"]])


def _parts(file: Path, coarse: bool) -> Iterator[bytes]:
    """What is hashed of a file: all of a small one, else samples."""
    whole = file.stat().st_size
    with file.open("rb") as stream:
        if whole <= SMALL:
            yield stream.read()
            return
        size = COARSE if coarse else SAMPLE
        for start in _coarse_starts(whole) if coarse else _starts(stream, file.suffix, whole):
            stream.seek(start)
            yield stream.read(size)


def _coarse_starts(whole: int) -> Iterator[int]:
    """At equal distances from the first to the last byte."""
    return (i * (whole - COARSE) // (COARSE_SAMPLES - 1) for i in range(COARSE_SAMPLES))


def _starts(stream: BinaryIO, suffix: str, whole: int) -> Iterator[int]:
    """In each tensor of safetensors; in another file all over it, and at its end, where PyTorch's have checksums."""
    if suffix != ".safetensors":
        yield from range(0, whole, APART)
        yield whole - SAMPLE
        return
    header = int.from_bytes(stream.read(8), "little")
    tensors: dict[str, Any] = json.loads(stream.read(header))
    for begin, end in (about["data_offsets"] for name, about in tensors.items() if name != "__metadata__"):
        last = max(begin, end - SAMPLE)  # the sample of a small tensor may reach into the next one
        yield from sorted({8 + header + begin + i * (last - begin) // (SAMPLES - 1) for i in range(SAMPLES)})
