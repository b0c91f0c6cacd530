"""theory.json as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from unlearn.paper.theory.rejection import SMALL
from unlearn.screen import console

Row = Sequence[str]


def show(found: Mapping[str, Any]) -> None:
    """One table for each part, with what the paper would have in a column beside it where that is one number."""
    _print(
        "Assumption 4.2: h(perturbed) - h(default)",
        ("", "measured", "assumed"),
        _differences(found["assumption_4_2"], "eta"),
    )
    if "theorem_4_3" in found:
        _theorem_4_3(found["theorem_4_3"])
    if "theorem_5_2" in found:
        small, injected, queries = (found["theorem_5_2"][part] for part in ("injected_small", "injected", "queries"))
        small = {"all": small["all"]}  # its gradients hardly differ: there are no thirds
        _theorem_5_2(small, f"Theorem 5.2, delta and epsilon of {SMALL:g} eta injected: P[ratio <= 0]")
        _theorem_5_2(injected, "Theorem 5.2, delta and epsilon injected: P[ratio <= 0]")
        _theorem_5_2(queries, "Theorem 5.2, real queries, only delta injected: P[ratio <= 0]")
    if "against" in found:
        _against(found["against"])


def _print(title: str, columns: Row, rows: Sequence[Row | None]) -> None:
    table = Table(title=escape(title), box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if number else "left")
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(escape, row))
    console.print(table)


def _interval(value: Mapping[str, float], digits: int = 3) -> str:
    return f"{value['mean']:.{digits}g} [{value['low']:.{digits}g}, {value['high']:.{digits}g}]"


def _quartiles(value: Mapping[str, float]) -> str:
    return f"{value['median']:.3g} [{value['p25']:.3g}, {value['p75']:.3g}]"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _shares(value: Mapping[str, float]) -> str:
    return f"{_percent(value['mean'])} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]"


def _differences(found: Mapping[str, Any], letter: str) -> list[Row]:
    mean, isotropy = found["mean"], found["isotropy"]
    rows: list[Row] = [
        (f"{letter}, variance of a coordinate [95 %]", _interval(found["eta"]), ""),
        ("size of the difference to that of the state [quartiles]", _quartiles(found["size_to_state"]), "small"),
        ("share of a common mean in the mean square", _percent(mean["share"]), "0 %"),
        ("p of no mean", f"{mean['p']:.2g}", ""),
        (
            "directions that it fills",
            f"{isotropy['directions']:.1f}",
            f"{isotropy['directions'] / isotropy['isotropy']:.0f}",
        ),
        ("p of isotropy", f"{isotropy['p']:.2g}", ""),
        (
            "largest eigenvalue's share",
            _percent(isotropy["largest_eigenvalue"]),
            _percent(isotropy["largest_eigenvalue_if_isotropic"]),
        ),
    ]
    for name, tested in found["normality"].items():
        of = f"{tested['directions']} {name}"
        rows.append((f"not normal, of {of} (false discovery rate 5 %)", _percent(tested["rejected"]), "0 %"))
        rows.append((f"excess kurtosis, median of {of}", f"{tested['excess_kurtosis']:.2f}", "0"))
    return rows


def _theorem_4_3(found: Mapping[str, Any]) -> None:
    rows: list[Row] = [
        (
            f"{row['variance_to_eta']:g}",
            _quartiles(row["nonlinear"]),
            _quartiles(row["variance"]),
            f"{row['covariance']['median']:.2f} ({row['covariance_by_chance']['median']:.2f})",
            _percent(row["mean"]["median"]),
        )
        for row in found["injected"]
    ]
    columns = ("variance / eta", "not linear", "variance / predicted", "covariance error (by chance)", "mean's share")
    _print("Theorem 4.3: noise at layer l against N(0, eta J^T J); medians [quartiles] over questions", columns, rows)
    real, broken = found["real"], found["linear_breaks_at"]
    rows = [
        (
            "linear approximation breaks (more than 10 % is not linear) at eta times",
            "-" if broken is None else f"{broken:g}",
        ),
        ("real queries: variance / predicted", _quartiles(real["variance"])),
        ("real queries: share of the change through h at layer l", _quartiles(real["explained"])),
    ]
    _print("", ("Theorem 4.3", "measured"), rows)


def _theorem_5_2(found: Mapping[str, Any], title: str) -> None:
    rows: list[Row | None] = []
    names = [name for name in ("measured", "linear", "exact", "published") if name in found["all"]["rows"][0]]
    for part, content in found.items():
        rows.append(None)
        ratio = f"{part}, {content['gradient_ratio']['median']:.2g}"
        for row in content["rows"]:
            measured = _interval(row["measured"])
            rows.append((ratio, f"{row['nu_to_eta']:g}", measured, *(f"{row[name]['mean']:.3f}" for name in names[1:])))
    _print(title, ("|g_per| / |g|, median", "nu / eta", "measured [95 %]", *names[1:]), rows)


def _against(found: Mapping[str, Any]) -> None:
    predicted = found["predicted"]
    rows: list[Row | None] = [
        ("questions", str(found["questions"])),
        ("rejected: ratio of the changes of loss <= 0 [95 %]", _shares(found["rejected"])),
        *(
            (f"predicted, {form}, with {_MEANING[nu]} {found[nu]:.3g}", _percent(predicted[nu][form]["mean"]))
            for nu in ("nu", "nu_measured")
            for form in ("exact", "published")
        ),
        None,
        ("the forget-token raises the loss of the model without RNA", _shares(found["rm_loss_rises"])),
    ]
    if found["rejected_where_rm_loss_rises"] is not None:
        rows.append(("rejected, of these", _shares(found["rejected_where_rm_loss_rises"])))
    rows += [
        ("RNA's change of the loss is the smaller one", _shares(found["change_of_loss_smaller"])),
        ("change of the loss, without RNA", _interval(found["change_of_loss"]["rm"])),
        ("change of the loss, with RNA", _interval(found["change_of_loss"]["rna"])),
    ]
    _print("Theorem 5.2 against the model that RNA has trained", ("", "measured"), rows)
    title = "Assumption 5.1: h of the RNA model - h of the model without, default queries"
    _print(title, ("", "measured", "assumed"), _differences(found["assumption_5_1"], "nu"))


_MEANING = {"nu": "the run's nu (variance)", "nu_measured": "the measured nu"}
