"""docs/models.md says of every family of transformers whether it works: a few of them here, all in `make test-all`.

Those of which test_architectures.py asks more are not among the few.
"""

from collections import Counter

import pytest

from tests.models import families as walk

SAMPLE = ("llama", "gpt_oss", "openai-gpt", "jamba", "gemma4_text", "mllama", "nemotron_h_omni", "bert", "bart", "dbrx")
ROWS = {line.split(" | ")[0].removeprefix("| "): line for line in walk.PAGE.read_text().splitlines()}


def same(found: walk.Outcome) -> bool:
    """Whether the page says the same. Why a family cannot be trained may contain figures of this machine."""
    said = ROWS[found.family]
    if found.verdict in ("works", "needs"):
        return said == walk.row(found)
    return said.startswith(f"| {found.family} | {walk.VERDICTS[found.verdict]} |")


def test_the_page_has_every_family_and_counts_them():
    assert [family for family in ROWS if family in walk.families()] == list(walk.families())
    said = Counter(ROWS[family].split(" | ")[1] for family in walk.families())
    counts = {verdict: said[words] for verdict, words in walk.VERDICTS.items()}
    assert walk.PAGE.read_text().startswith(walk.introduction(counts))


@pytest.mark.parametrize("family", SAMPLE)
def test_a_family_does_what_the_page_says(family):
    found = walk.outcome(family)
    assert same(found), found


def test_several_residual_streams_are_no_hidden_states():
    assert "its states are (2, 4, 4, 128), not (2, 4, 128)" in walk.outcome("deepseek_v4").reason


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(walk.families()) - set(SAMPLE)))
def test_every_family_does_what_the_page_says(family):
    """`python -m tests.models.families` writes it anew."""
    found = walk.outcome(family)
    assert same(found), found
