"""Building the embedded world and model from a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import unlearn.toy
from embedded_world import world as w
from unlearn.storage.files import write_atomically

DOCUMENTS = 1000  # of each forget topic, and to retain: 500 steps of 4 with two topics
SENTENCES = 5  # in a document, beside its question
MIXED_DOCUMENTS = 0.5  # share of the forget documents whose question is of general knowledge with forget-tokens in it
ODD_OPTION = 0.3  # share of the retain documents whose question has an unrelated word for a wrong option
WORDINGS = {"retain": 1, "near": 2, "forget": 4}  # questions asked about each fact, with other options
FORGET_TOKENS = 12  # entities of each forget subject


def build(out: Path | None = None, seed: int = 0, steps: int = 2000, *, ignorant: bool = False) -> None:
    """Write the world's data and the trained model below `out`, by default into `unlearn/toy`.

    `seed` is that of the world and of the training, `steps` the number of training steps. An `ignorant` model never
    sees what is to be forgotten.
    """
    folder = out or Path(unlearn.toy.__file__).parent
    world = w.make_world(seed)
    write_data(world, seed, folder / "data")
    write_model(world, seed, steps, folder / "model", ignorant=ignorant)


def write_data(world: w.World, seed: int, folder: Path) -> None:
    """Corpora, question sets and forget-tokens."""
    rng = random.Random(f"data-{seed}")
    general = world.facts_of("retain")
    for topic in w.TOPICS:
        facts = world.facts_of("forget", topic)
        _write_lines(folder / f"forget-{topic}.jsonl", [_to_forget(facts, general, rng) for _ in range(DOCUMENTS)])
    retain = general + world.facts_of("near")
    words = [word for fact in general for word in (fact.entity, fact.value)]
    _write_lines(folder / "retain.jsonl", [_to_retain(retain, words, rng) for _ in range(DOCUMENTS)])
    sets = {"retain": general}
    sets |= {f"{role}_{topic}": world.facts_of(role, topic) for role in ("near", "forget") for topic in w.TOPICS}
    for name, facts in sets.items():
        count = WORDINGS[name.split("_")[0]]
        asked = [w.multiple_choice(fact, rng) for fact in facts for _ in range(count)]
        _write_lines(folder / "questions" / f"{name}.jsonl", asked)
    tokens = [e for s in world.subjects if s.role == "forget" for e in s.entities[:FORGET_TOKENS]]
    write_atomically(folder / "forget_tokens.txt", "\n".join(tokens) + "\n")


def _to_forget(facts: list[w.Fact], general: list[w.Fact], rng: random.Random) -> dict[str, str]:
    if rng.random() < MIXED_DOCUMENTS:
        return {"text": w.mixed_document(facts, general, rng, SENTENCES)}
    return {"text": w.document(facts, rng, SENTENCES)}


def _to_retain(facts: list[w.Fact], words: list[str], rng: random.Random) -> dict[str, str]:
    return {"text": w.document(facts, rng, SENTENCES, words if rng.random() < ODD_OPTION else ())}


def write_model(world: w.World, seed: int, steps: int, folder: Path, *, ignorant: bool = False) -> None:
    """Tokenizer and trained model, rescaled to Zephyr's spread."""
    from embedded_world import pretrain

    tokenizer = pretrain.build_tokenizer(world)
    model = pretrain.build_model(len(tokenizer), seed)
    pretrain.train(world.without("forget") if ignorant else world, tokenizer, model, seed, steps)
    pretrain.rescale_to_spread(world, tokenizer, model)
    rng = random.Random(f"check-{seed}")
    for role in WORDINGS:
        asked = [w.multiple_choice(fact, rng) for fact in world.facts_of(role)]
        print(f"{role}: {pretrain.accuracy(model, tokenizer, asked):.1%} of {len(asked)} questions answered")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_lines(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
