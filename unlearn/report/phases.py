"""The phases of section 6.6 on a curve over nu: robustness rises, declines, rises again with forgotten knowledge."""

from __future__ import annotations

import pandas as pd


def phases(rows: pd.DataFrame) -> pd.DataFrame:
    """Where phases I, II and III begin and end (columns phase, begin, end), from means under perturbation.

    I ends at the peak of retained knowledge; II at the lowest point after it; III is what follows, if both kinds of
    knowledge end higher than they were there. Of fewer than three values of nu, or of several curves, none.
    """
    under = rows[(rows["query"] == "perturbed") & ~rows.duplicated(["x", "role", "query"], keep=False)]
    table = under.pivot(index="x", columns="role", values="mean").sort_index()
    if len(table) < 3 or not {"retain", "forget"} <= set(table.columns):
        return pd.DataFrame(columns=["phase", "begin", "end"])
    first, last, retain = table.index[0], table.index[-1], table["retain"]
    peak = _peak(retain)
    trough = retain[peak:].idxmin()
    again = bool((table.loc[last] > table.loc[trough]).all())
    ends = [("I", first, peak), ("II", peak, trough if again else last), ("III", trough if again else last, last)]
    return pd.DataFrame([{"phase": p, "begin": b, "end": e} for p, b, e in ends if e > b])


def _peak(retain: pd.Series) -> float:
    """The highest value before the lowest one that follows a higher one: what rises again at the end is phase III."""
    fall = retain.cummax() - retain
    lowest = fall.idxmax()
    return float((retain[:lowest] if fall[lowest] > 0 else retain).idxmax())
