"""Fingerprints of a checkpoint and of its tokenizer: they say what a run used, wherever the files are."""

from __future__ import annotations

import hashlib
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from unlearn.models.loading import Source, load_config
from unlearn.storage.hashing import json_sha256

SAMPLE, CHUNKS = 1 << 20, 64  # bytes of a sample; how many of a file are hashed
# Letters of both cases, accents composed and not, spaces, digits, other scripts: what tokenizers treat differently.
PROBE = "An  unlearned\tModel's caf\u00e9 cafe\u0301, 12345.67 (na\u00efve)\n\u6a21\u578b \U0001f642 "


def checkpoint_fingerprint(source: Source) -> str:
    """The commit of a hub model; for a local folder a hash of its configuration and weight files.

    Of a file larger than 64 MiB, 64 evenly spaced samples of 1 MiB are hashed: enough to tell checkpoints apart
    without reading all of a 70B model.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        return load_config(source)._commit_hash or "unknown"
    wanted = [source.gguf_file] if source.gguf_file else ["config.json", "*.safetensors", "*.bin"]
    digest = hashlib.sha256()
    for file in sorted(f for pattern in wanted for f in folder.glob(pattern)):
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        _hash_samples(file, digest)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary and of the token ids of a text, special tokens included.

    It does not depend on how a version of a library writes a tokenizer down.
    """
    return json_sha256([tokenizer.get_vocab(), tokenizer(PROBE)["input_ids"]])


def _hash_samples(file: Path, digest: hashlib._Hash) -> None:
    size = file.stat().st_size
    count = min(CHUNKS, -(-size // SAMPLE))
    with file.open("rb") as stream:
        for i in range(count):
            # Whole files up to CHUNKS samples; beyond that from the first to the last byte at equal distances.
            stream.seek(i * SAMPLE if size <= CHUNKS * SAMPLE else i * (size - SAMPLE) // (count - 1))
            digest.update(stream.read(SAMPLE))
