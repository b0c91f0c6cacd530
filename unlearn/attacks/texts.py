"""The texts that an attack trains on or looks at: the run's own corpora, or another one."""

from __future__ import annotations

from unlearn.attacks.attack import Target
from unlearn.data.corpora import UNKNOWN, Reading, check_rows, load_texts, unknown_share
from unlearn.errors import UserError

RUNS_CORPORA = ("forget", "retain")  # names of the run's own corpora; anything else is a path


def rows_of(target: Target, texts: str, key: str, documents: int, max_length: int | None = None) -> list[list[int]]:
    """Token ids of the first documents of each corpus, topics in turn. The run's own are read as it read them.

    Raises UserError, which names `key`, for a corpus that cannot be read.
    """
    own = texts in RUNS_CORPORA
    corpora = target.unlearning.corpora.values()
    paths = list(dict.fromkeys(of_topic[texts] for of_topic in corpora)) if own else [texts]
    by_corpus = [
        load_texts(
            path,
            key,
            target.tokenizer,
            max_length=max_length or target.unlearning.max_length,
            documents=documents,
            reading=target.unlearning.reading if own else Reading(),
        ).rows
        for path in paths
    ]
    longest = max(map(len, by_corpus))
    return [rows[i] for i in range(longest) for rows in by_corpus if i < len(rows)]


def why_unknown(target: Target, texts: str) -> str | None:
    """Why there are no such texts; None if there are. Those of an adopted checkpoint may not be known."""
    if texts in RUNS_CORPORA and not target.unlearning.corpora:
        return f"the texts that this model was to {texts} are not known"
    return None


def why_not_read(target: Target, rows: list[list[int]], texts: str, key: str) -> str | None:
    """Why the model cannot read these rows; None if it can.

    Texts that the tokenizer does not know say nothing, and the model may not know the tokenizer's ids.
    """
    try:
        embeddings = len(target.model.get_input_embeddings().weight)
        check_rows({f"{key}={texts}": rows}, embeddings, first_counted=False)
    except UserError as error:
        return str(error).rstrip(".")
    if unknown_share(rows, target.tokenizer) <= UNKNOWN:
        return None
    return f"the model's tokenizer does not know the texts of {texts}"
