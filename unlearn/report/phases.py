"""The phases of section 6.6 on a curve over nu: robustness rises, declines, rises again with forgotten knowledge."""

from __future__ import annotations

import pandas as pd

MARGIN = 1.15  # how far beside the smallest and the largest nu an axis goes on, as a factor


def phases(rows: pd.DataFrame, plain: pd.DataFrame) -> pd.DataFrame:
    """Where phases I, II and III begin and end (columns phase, begin, end), from means under perturbation.

    `rows` has those of several nu (x, role, query, mean), `plain` those without RNA, from where phase I begins if the
    smallest nu has gained. I ends at the peak of retained knowledge; II at the lowest point after it; III is what
    follows, if both kinds of knowledge end higher than they were there. Of fewer than three values of nu, or of
    several curves, none.
    """
    under = rows[(rows["query"] == "perturbed") & ~rows.duplicated(["x", "role", "query"], keep=False)]
    table = under.pivot(index="x", columns="role", values="mean").sort_index()
    if len(table) < 3 or not {"retain", "forget"} <= set(table.columns):
        return pd.DataFrame(columns=["phase", "begin", "end"])
    first, last, retain = table.index[0], table.index[-1], table["retain"]
    before = plain[(plain["query"] == "perturbed") & (plain["role"] == "retain")]["mean"]
    gained = len(before) == 1 and before.iloc[0] < retain[first]
    peak = _peak(retain)
    trough = retain[peak:].idxmin()
    again = bool((table.loc[last] > table.loc[trough]).all())
    begin, decline = (first / MARGIN if gained else first), (trough if again else last)
    ends = [("I", begin, peak), ("II", peak, decline), ("III", decline, last)]
    return pd.DataFrame([{"phase": p, "begin": b, "end": e} for p, b, e in ends if e > b])


def _peak(retain: pd.Series) -> float:
    """The highest value before the deepest fall: what rises again after that is phase III, however high."""
    fall = retain.cummax() - retain
    deepest = fall.idxmax()
    return float((retain[:deepest] if fall[deepest] > 0 else retain).idxmax())
