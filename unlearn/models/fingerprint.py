"""Fingerprints of a checkpoint and of its tokenizer: they say what a run used, wherever the files are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from unlearn.models.loading import Source, load_config
from unlearn.storage.hashing import json_sha256

SMALL = 1 << 26  # bytes up to which a file is hashed whole
SAMPLE, SAMPLES = 1 << 13, 8  # bytes of a sample; how many of a tensor are hashed
# Letters of both cases, accents composed and not, spaces, digits, other scripts: what tokenizers treat differently.
PROBE = "An  unlearned\tModel's caf\u00e9 cafe\u0301, 12345.67 (na\u00efve)\n\u6a21\u578b \U0001f642 "


def checkpoint_fingerprint(source: Source) -> str:
    """The commit of a hub model; for a local folder a hash of its configuration and weight files.

    Of safetensors larger than 64 MiB, samples of each tensor are hashed: enough to tell a checkpoint from its export
    with three other matrices, without reading all of a 70B model.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        return load_config(source)._commit_hash or "unknown"
    wanted = [source.gguf_file] if source.gguf_file else ["config.json", "*.safetensors", "*.bin"]
    digest = hashlib.sha256()
    for file in sorted(f for pattern in wanted for f in folder.glob(pattern)):
        digest.update(f"{file.name}:{file.stat().st_size}".encode())
        for part in _parts(file):
            digest.update(part)
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary and of the token ids of a text, special tokens included.

    It does not depend on how a version of a library writes a tokenizer down.
    """
    return json_sha256([tokenizer.get_vocab(), tokenizer(PROBE)["input_ids"]])


def _parts(file: Path) -> Iterator[bytes]:
    """What is hashed of a file: all of it, or the header of large safetensors and samples of each tensor."""
    with file.open("rb") as stream:
        if file.suffix != ".safetensors" or file.stat().st_size <= SMALL:
            while block := stream.read(SMALL):
                yield block
            return
        size = stream.read(8)  # of the header, which says where each tensor lies behind it
        header = stream.read(int.from_bytes(size, "little"))
        yield header
        tensors = {name: about for name, about in json.loads(header).items() if name != "__metadata__"}
        for begin, end in (about["data_offsets"] for about in tensors.values()):
            last = max(begin, end - SAMPLE)
            for start in sorted({begin + i * (last - begin) // (SAMPLES - 1) for i in range(SAMPLES)}):
                stream.seek(len(size) + len(header) + start)
                yield stream.read(min(SAMPLE, end - start))
