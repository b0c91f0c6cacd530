"""The phases of section 6.6 on a curve over nu: robustness rises, declines, rises again with forgotten knowledge."""

from __future__ import annotations

import pandas as pd

from unlearn.analysis.report.curves import MARGIN


def phases(rows: pd.DataFrame, plain: float | None) -> pd.DataFrame:
    """Where phases I, II and III begin and end (columns phase, begin, end), read off means under perturbation.

    `rows` has a curve's x, role, query and mean; `plain` is retained knowledge without RNA, from where phase I begins
    if the smallest nu has gained. I ends at the peak of retained knowledge; II at the lowest point after it; III is
    what follows, if both kinds of knowledge end higher than they were there. Of fewer than three values of nu, none.
    """
    under = rows[rows["query"] == "perturbed"]
    table = under.pivot(index="x", columns="role", values="mean").sort_index()
    if len(table) < 3 or not {"retain", "forget"} <= set(table.columns):
        return pd.DataFrame(columns=["phase", "begin", "end"])
    first, last, retain = table.index[0], table.index[-1], table["retain"]
    gained = plain is not None and plain < retain[first]
    peak, trough = turning_points(retain)
    ends = [("I", first / MARGIN if gained else first, peak), ("II", peak, trough)]
    if (table.loc[last] > table.loc[trough]).all():
        ends.append(("III", trough, last))
    return pd.DataFrame([{"phase": p, "begin": b, "end": e} for p, b, e in ends if e > b])


def turning_points(retain: pd.Series) -> tuple[float, float]:
    """nu of the highest value before the deepest fall, as what rises again is phase III, and of the lowest after it."""
    fall = retain.cummax() - retain
    deepest = fall.idxmax()
    peak = (retain[:deepest] if fall[deepest] > 0 else retain).idxmax()
    return float(peak), float(retain[peak:].idxmin())
