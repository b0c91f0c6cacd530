"""How many documents a training takes from each corpus, and the sentence about too few. Nothing heavy is imported."""

from __future__ import annotations


def documents_needed(steps: int, batch_size: int, topics: int) -> int:
    """The most documents that training takes from a corpus: steps take the topics in turn."""
    return -(-steps // topics) * batch_size


def too_few(key: str, count: str, available: int, needed: int, held_out: int) -> str:
    """The sentence about a corpus with too few documents: how many there are, how many are kept back, what to do.

    `count` says in words what there is, for example "FILE has 20 lines"; `available` is the number.
    """
    sentence = f"{key}: {count}, but training needs {needed} documents"
    remedy = "Give more documents"
    if available > held_out:
        remedy += ", lower train.steps or train.batch_size, or set data.on_exhausted=cycle to use documents again"
    if held_out:
        return f"{sentence}, and data.held_out={held_out} more are kept back. {remedy}, or lower data.held_out."
    return f"{sentence}. {remedy}."
