"""Temporary: scores under the old flat names, for what does not read rows yet. Delete with its last user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from unlearn.records.scores import Score, flat, nested


def flat_metrics(scores: Iterable[Score]) -> dict[str, float]:
    """{"MODEL/TASK/QUERY/MEASURE": value}."""
    return flat(nested(scores))


def flat_role_means(
    metrics: Mapping[str, float], roles: Mapping[str, Sequence[str]], model: str, metric: str
) -> dict[tuple[str, str], float]:
    """{(role, query): mean of a metric over the role's tasks}, left out where a task lacks the metric."""
    names = [name.rsplit("/", 2) for name in metrics if name.startswith(f"{model}/")]
    queries = dict.fromkeys(query for _, query, what in names if what == metric)
    means = {}
    for role, tasks in roles.items():
        for query in queries:
            values = [metrics.get(f"{model}/{task}/{query}/{metric}") for task in tasks]
            known = [value for value in values if value is not None]
            if known and len(known) == len(tasks):
                means[role, query] = sum(known) / len(known)
    return means
