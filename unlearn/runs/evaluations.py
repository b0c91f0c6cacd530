"""Which questions a run was asked, read from its run.json."""

from __future__ import annotations

from typing import Any

from unlearn.config.schema import is_asked, text_tasks
from unlearn.storage.hashing import json_sha256

CHAT = ("chat_template", "system_instruction", "fewshot_as_multiturn")


def evaluations(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The evaluations whose results are the run's, its own and later ones, from its run.json; with `query_words`.

    Those that repeat a part of an earlier one have a folder of their own, and are left out.
    """
    own, inputs = {**record.get("config", {}).get("eval", {}), **record["identity"]["eval"]}, record.get("inputs", {})
    hashes = {
        "query_words": inputs.get("query_words"),
        "text_hashes": inputs.get("texts", inputs.get("plain_texts", {})),
    }
    hashes["questions"] = inputs.get("questions")
    return [own | hashes, *(later for later in record.get("evaluations", []) if not later.get("folder"))]


def roles_of(evaluation: dict[str, Any]) -> dict[str, list[str]]:
    """The tasks and held-out texts of an evaluation, by role."""
    return {**evaluation["tasks"], **text_tasks(evaluation.get("texts", {}).get("corpora", {}))}


def in_role(evaluation: dict[str, Any], query: str, role: str) -> bool:
    """Whether an evaluation asks a kind of query of a role."""
    has_it = bool(roles_of(evaluation).get(role)) and query in evaluation["queries"]
    return has_it and is_asked(evaluation.get("asked_of", {}), query, role)


def asked(record: dict[str, Any], query: str, role: str | None = None) -> dict[str, Any]:
    """The settings that determine the questions of a kind of query, of a role or of any role, from a run.json.

    They are those of the first evaluation, the run's own or a later one, that asked it; empty if none did.
    """
    evaluation = _first(record, query, role)
    if not evaluation:
        return {}
    words = evaluation.get("query_words") or {}
    chosen = {key: evaluation.get(key) for key in ("num_fewshot", "limit", "subset")}
    chosen |= {key: evaluation.get(key) if evaluation.get("chat_template") else None for key in CHAT}
    if evaluation.get("text_hashes") and (role is None or role not in evaluation["tasks"]):
        cut = {key: value for key, value in evaluation["texts"].items() if key != "corpora"}
        chosen |= {"texts": cut, "text_hashes": evaluation["text_hashes"]}
    if query != "default":
        chosen |= {key: evaluation.get(key) for key in ("seed", "replaced", "position")}
        # Older runs have one hash for all queries.
        chosen["words"] = words.get(query) if isinstance(words, dict) else words
    return chosen


def content(record: dict[str, Any], query: str, role: str | None = None) -> str | None:
    """The hash of those questions and their right answers; None if they were not asked, or by an older version."""
    hashes = (_first(record, query, role).get("questions") or {}).get(query, {})
    return hashes.get(role) if role else json_sha256(hashes) if hashes else None


def other_content(a: dict[str, Any], b: dict[str, Any], query: str, role: str | None = None) -> bool:
    """Whether two runs that were to be asked the same part of the same tasks found other questions or answers there."""
    one, other = (content(record, query, role) for record in (a, b))
    return None not in (one, other) and one != other and _part(a, query, role) == _part(b, query, role)


def _part(record: dict[str, Any], query: str, role: str | None) -> tuple[Any, ...]:
    evaluation = _first(record, query, role)
    roles = roles_of(evaluation)
    return evaluation.get("limit"), evaluation.get("subset"), roles[role] if role else roles


def _first(record: dict[str, Any], query: str, role: str | None) -> dict[str, Any]:
    for evaluation in evaluations(record):
        if any(in_role(evaluation, query, r) for r in ([role] if role else roles_of(evaluation))):
            return evaluation
    return {}
