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
        for part in _coarse_parts(file) if coarse else _parts(file):
            digest.update(part)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary and of the token ids of a text, special tokens included.

    It does not depend on how a version of a library writes a tokenizer down.
    """
    return json_sha256([tokenizer.get_vocab(), tokenizer(PROBE)["input_ids"]])


def _parts(file: Path) -> Iterator[bytes]:
    """What is hashed of a file: all of a small one, else samples."""
    whole = file.stat().st_size
    with file.open("rb") as stream:
        if whole <= SMALL:
            yield stream.read()
            return
        for start in _starts_of_tensors(stream) if file.suffix == ".safetensors" else range(0, whole, APART):
            stream.seek(start)
            yield stream.read(SAMPLE)
        stream.seek(whole - SAMPLE)  # where PyTorch's archives have checksums
        yield stream.read()


def _coarse_parts(file: Path) -> Iterator[bytes]:
    """All of a small file; of another one 64 samples from the first to the last byte at equal distances."""
    whole, sample, samples = file.stat().st_size, 1 << 20, 64
    with file.open("rb") as stream:
        if whole <= SMALL:
            yield stream.read()
            return
        for i in range(samples):
            stream.seek(i * (whole - sample) // (samples - 1))
            yield stream.read(sample)


def _starts_of_tensors(stream: BinaryIO) -> Iterator[int]:
    """Where samples of each tensor of safetensors begin; the last may reach into the next tensor."""
    header = int.from_bytes(stream.read(8), "little")
    tensors: dict[str, Any] = json.loads(stream.read(header))
    for begin, end in (about["data_offsets"] for name, about in tensors.items() if name != "__metadata__"):
        last = max(begin, end - SAMPLE)
        yield from sorted({8 + header + begin + i * (last - begin) // (SAMPLES - 1) for i in range(SAMPLES)})
