"""Which questions a run was asked, read from its run.json."""

from __future__ import annotations

from typing import Any

from unlearn.config.schema import is_asked


def evaluations(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run was asked, by its run.json: by its own evaluation and by later ones, each with `query_words`."""
    own = {**record.get("config", {}).get("eval", {}), **record["identity"]["eval"]}
    return [own | {"query_words": record.get("inputs", {}).get("query_words")}, *record.get("evaluations", [])]


def in_role(evaluation: dict[str, Any], query: str, role: str) -> bool:
    """Whether an evaluation asks a role's tasks in a kind of query."""
    has_it = bool(evaluation["tasks"].get(role)) and query in evaluation["queries"]
    return has_it and is_asked(evaluation.get("asked_of", {}), query, role)


def asked(record: dict[str, Any], query: str, role: str | None = None) -> dict[str, Any]:
    """What determines the content of the questions that a run, by its run.json, was asked in a kind of query.

    Of a role, or of any: by its own evaluation or, where that was not asked it, by the first later one. Empty if it was
    in none.
    """
    for evaluation in evaluations(record):
        if any(in_role(evaluation, query, r) for r in ([role] if role else evaluation["tasks"])):
            words = evaluation.get("query_words") or {}
            chosen = {key: evaluation.get(key) for key in ("num_fewshot", "limit", "subset")}
            if query != "default":
                chosen |= {key: evaluation.get(key) for key in ("seed", "replaced", "position")}
                chosen["words"] = words.get(query) if isinstance(words, dict) else words  # of older runs one for all
            return chosen
    return {}
