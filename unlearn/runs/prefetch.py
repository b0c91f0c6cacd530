"""Fetching all that a job needs, on a node with a network.

Model, tokenizer, corpora and evaluation data of the configuration are checked as a job checks them at its start. With
HF_HUB_OFFLINE=1 (and the same HF_HOME) the job then needs no network.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download

from unlearn.config.schema import NGRAM_QUERIES, Config
from unlearn.errors import UserError
from unlearn.models.loading import Source
from unlearn.runs.inputs import load_inputs
from unlearn.screen import say

# The files that transformers loads, without the same weights in other formats.
FILES = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt", "*.py"]


def prefetch(config: Config) -> None:
    """Fetch and check. Raises UserError for what cannot be fetched."""
    source = Source.of(config.model)
    if not Path(source.path).is_dir():
        try:
            files = [*FILES, source.gguf_file] if source.gguf_file else FILES
            snapshot_download(source.path, revision=source.revision, allow_patterns=files)
        except Exception as error:  # the hub's errors share no base class
            raise UserError(f"model.path={source.path}: cannot be fetched: {error}") from error
    # Lists of n-grams need a forward pass over the corpora: the job makes them.
    config.eval.queries = [query for query in config.eval.queries if query not in NGRAM_QUERIES]
    inputs = load_inputs(config)
    say(f"model {config.model.name}: {source.path}")
    for topic in inputs.topics:
        say(f"topic {topic.name}: {len(topic.forget)} documents to forget, {len(topic.retain)} to retain")
    for query, tasks in inputs.questions.suite.tasks.items():
        say(f"{query} queries: {sum(len(task.eval_docs) for task in tasks['tasks'].values())} questions")
