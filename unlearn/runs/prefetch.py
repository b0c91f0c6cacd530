"""Downloading everything that a job needs, on a machine with a network.

Model, tokenizer, corpora and evaluation data are checked as at the start of a job, except for device and memory, which
are those of another machine. The job then needs no network if HF_HUB_OFFLINE=1 is set and HF_HOME is the same.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import list_repo_files, snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE

from unlearn.config.schema import Config
from unlearn.errors import UserError
from unlearn.models.loading import Source
from unlearn.records.names import NGRAM_QUERIES
from unlearn.runs.inputs import load_inputs
from unlearn.screen import say

# The files that transformers loads, without the same weights in other formats.
FILES = ["*.json", "tokenizer*", "*.model", "*.txt", "*.py"]


def prefetch(config: Config) -> None:
    """Download and check the inputs of a configuration. Raises UserError for what cannot be downloaded."""
    _fetch("model.path", Source.of(config.model))
    if config.eval.ngrams.encoder is not None and NGRAM_QUERIES.keys() & set(config.eval.queries):
        _fetch("eval.ngrams.encoder", Source(config.eval.ngrams.encoder))
    # Lists of n-grams need a forward pass over the corpora: the job makes them.
    config.eval.queries = [query for query in config.eval.queries if query not in NGRAM_QUERIES]
    say("Downloading corpora and tasks, and checking them")
    inputs = load_inputs(config, elsewhere=True)
    say(f"model {config.model.name}: {config.model.path}")
    for topic in inputs.topics:
        say(f"topic {topic.name}: {len(topic.forget)} documents to forget, {len(topic.retain)} to retain")
    for query, tasks in (inputs.questions.suite.tasks if inputs.questions else {}).items():
        say(f"{query} queries: {sum(len(task.eval_docs) for task in tasks['tasks'].values())} questions")


def _fetch(key: str, source: Source) -> None:
    """Download a model unless it is a local folder. Raises UserError, with the key that names it, if that fails."""
    if Path(source.path).is_dir():
        return
    say(f"Downloading {source.path} ({key})")
    try:
        weights = source.gguf_file or ("*.safetensors" if HF_HUB_OFFLINE else _weights(source))
        snapshot_download(source.path, revision=source.revision, allow_patterns=[*FILES, weights])
    except Exception as error:  # the hub's errors share no base class
        raise UserError(f"{key}={source.path}: cannot be downloaded: {error}") from error


def _weights(source: Source) -> str:
    """The pattern of a hub model's weight files, in one format."""
    files = list_repo_files(source.path, revision=source.revision)
    safe = any(name.endswith(".safetensors") and "/" not in name for name in files)
    return "*.safetensors" if safe else "*.bin"
