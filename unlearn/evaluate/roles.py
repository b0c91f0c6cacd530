"""Means over the tasks of a role. Their names are the same for any set of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROLES = "roles.json"  # inside samples/: {role: tasks}
DRAWN = "drawn.json"  # inside samples/, if `eval.subset` drew others of the same task for another role: `Suite.drawn`


def role_means(
    metrics: Mapping[str, float], roles: Mapping[str, Sequence[str]], model: str, metric: str
) -> dict[tuple[str, str], float]:
    """{(role, query): mean of a metric over the role's tasks}, left out where a task lacks the metric."""
    names = [name.rsplit("/", 2) for name in metrics if name.startswith(f"{model}/")]
    queries = dict.fromkeys(query for _, query, what in names if what == metric)
    found = {}
    for role, tasks in roles.items():
        for query in queries:
            values = [metrics.get(f"{model}/{task}/{query}/{metric}") for task in tasks]
            known = [value for value in values if value is not None]
            if known and len(known) == len(tasks):
                found[role, query] = sum(known) / len(known)
    return found


def role_accuracies(
    metrics: Mapping[str, float], roles: Mapping[str, Sequence[str]], model: str
) -> dict[tuple[str, str], float]:
    """{(role, query): mean accuracy over the role's tasks}, left out where a task is missing."""
    return role_means(metrics, roles, model, "acc")
