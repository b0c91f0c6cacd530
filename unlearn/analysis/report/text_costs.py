"""What held-out texts cost a run's models, and what a word costs that is inserted into them, in nats a token."""

from __future__ import annotations

from unlearn.analysis.report.answers import Answers, Places, by_item, weighted


def nats(places: Places, role: str, query: str, model: str = "unlearned") -> Answers:
    """Of each text; of none, if one has no finite value."""
    samples = places.get((role, query, model), [])
    return by_item(samples, lambda s: s.value) if all(s.value is not None for _, s in samples) else {}


def beyond_base(places: Places, role: str, query: str) -> Answers:
    """What each text costs the unlearned model more than the base model."""
    return minus(nats(places, role, query), nats(places, role, query, "base"))


def word_cost(places: Places, role: str, query: str, model: str = "unlearned") -> Answers:
    """What each text costs more with the word that a kind of query inserts."""
    return minus(nats(places, role, query, model), nats(places, role, "default", model))


def word_cost_beyond_base(places: Places, role: str, query: str) -> Answers:
    """How much more the word costs the unlearned model than the base model."""
    return minus(word_cost(places, role, query), word_cost(places, role, query, "base"))


def minus(a: Answers, b: Answers) -> Answers:
    """The difference for each item of both."""
    return weighted([1, -1], [a, b])
