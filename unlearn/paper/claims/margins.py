"""What counts as "stays the same" and as "no more": a claim that there is no effect needs a margin, in any data."""

from __future__ import annotations

SAME_POINTS = 5.0
SAME_NATS = 0.05  # nats a token
SAME_RECOVERED = 0.25  # nats a token that an attack brings back
MARGINS = f"""\
No data show that two figures are equal; they can show that they are less than a margin apart. The margins are
conventions of this project, chosen by hand. {SAME_POINTS:g} points: a tenth of what a model loses that knew three of
four answers and guesses one of four. {SAME_NATS:g} nats a token: a perplexity 5 % higher. {SAME_RECOVERED:g} nats a
token, of what an attack brings back: a twentieth of the 5 to 6 nats that the models of docs/real.md forget. Whoever
holds another margin right compares it with the interval."""
