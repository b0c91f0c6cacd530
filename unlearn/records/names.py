"""The names of kinds of query, of roles, and of held-out corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NGRAM_SIZES = (2, 4, 8, 16)  # words
NGRAM_QUERIES = {
    **{f"similarity-{kind}": (2, kind) for kind in ("most", "least", "mean")},
    **{f"ngram-{n}": (n, "most") for n in NGRAM_SIZES},
}  # query -> words of an n-gram, and which list of them
QUERIES = ("default", "perturbed", "control", *NGRAM_QUERIES)

ALL, CHOOSING, JUDGING = "all", "choosing", "judging"  # of the questions of a task: all, or a part of them


def is_asked(asked_of: Mapping[str, Sequence[str]], query: str, role: str) -> bool:
    """Whether a role is asked a kind of query: `eval.asked_of` names the query's roles; without an entry, all are."""
    return role in asked_of.get(query, (role,))


def text_role(role: str) -> str:
    """The role of a role's held-out texts."""
    return f"{role}_text"


def text_task(role: str, name: str) -> str:
    """The task of a role's held-out corpus."""
    return f"{role}_text_{name}"


def is_text_task(role: str, task: str) -> bool:
    """Whether this is the task of a held-out corpus."""
    return role.endswith(text_role("")) and task.startswith(f"{role}_")


def text_tasks(corpora: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The roles and tasks of held-out corpora: {"retain_text": ["retain_text_wiki"], ...}."""
    return {text_role(role): [text_task(role, name) for name in named] for role, named in corpora.items()}
