"""The states of a sweep's jobs as a table, and retrying failed jobs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from unlearn.config.identity import run_folder
from unlearn.config.recorded import ALLOW, code_of
from unlearn.errors import UserError
from unlearn.screen import WIDE, PlainConsole, say
from unlearn.storage.lock import Phase
from unlearn.storage.schema import leads_out
from unlearn.sweeps import slurm
from unlearn.sweeps.submission import has_this_code
from unlearn.sweeps.summary import show_summary
from unlearn.sweeps.sweep import State, Sweep

POLL_S = 5.0
SWEEPS = "sweeps"  # below output_root: sweeps/DATE/TIME
console = PlainConsole(width=None if sys.stdout.isatty() else WIDE)
STYLES = {"done": "green", "failed": "red", "interrupted": "yellow", "running": "cyan"}


def wait_for(sweep: Sweep, numbers: list[int]) -> dict[int, str]:
    """Wait until these jobs have ended, with a line at each change. Returns {number: reason} of failed jobs.

    Raises UserError when the user interrupts; the jobs go on.
    """
    states: dict[int, State] = {}
    before = ""
    try:
        while True:
            states = sweep.states(states)
            counts = summary(states[n] for n in numbers)
            if counts != before:
                say(f"{time.strftime('%H:%M:%S')} {counts}")
                before = counts
            if all(states[n].ended for n in numbers):
                return {n: states[n].detail or states[n].name for n in numbers if states[n].name != "done"}
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise UserError(
            f"No longer waiting; the jobs go on. To watch them: unlearn status {sweep.folder}. To stop "
            f"them: scancel {' '.join(sorted({task.partition('_')[0] for task in sweep.tasks.values()}))}"
        ) from None


def view(sweep: Sweep, states: Mapping[int, State]) -> Group:
    """The number of jobs in each state, the overrides that all have, and a row for each job with its own overrides.

    Columns in which all rows are empty are left out.
    """
    parent = _common_parent(sweep)
    rows = []
    for number, state in states.items():
        interrupted = f", interrupted {state.interruptions} x" if state.interruptions else ""
        progress, left = _progress(state)
        folder = sweep.jobs[number].folder
        rows.append(
            {
                "#": str(number),
                "job": escape(sweep.label(number)),
                "state": f"[{STYLES.get(state.name, 'default')}]{state.name}[/]{interrupted}",
                "progress": progress,
                "left": left,
                "why": escape((state.detail.strip().splitlines() or [""])[-1]),
                "folder": "" if folder is None else escape(os.path.relpath(folder, parent)),
                "SLURM": sweep.tasks.get(number, ""),
            }
        )
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    table = Table(*[Column(name, overflow="fold") for name in columns], box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*[row[name] for name in columns])
    lines = [f"{sweep.folder}: {summary(states.values())}", f"folders: in {parent}", " ".join(sweep.common)]
    return Group(*[Text(line) for line in lines if line], table)


def _common_parent(sweep: Sweep) -> Path:
    """The folder that holds all runs of a sweep."""
    folders = [str(Path(job.folder).parent) for job in sweep.jobs.values() if job.folder is not None]
    return Path(os.path.commonpath(folders)) if folders else sweep.folder


def _progress(state: State) -> tuple[str, str]:
    """The progress of a job's phase, and the time left."""
    phase = state.phase
    if phase is None or not phase.total:
        return "", ""
    seconds = eta_s(phase)
    left = "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
    return f"{phase.name} {phase.done}/{phase.total}", left


def summary(states: Iterable[State]) -> str:
    """How many jobs are in which state, in words."""
    names = [state.name for state in states]
    order = ("pending", "running", "done", "failed", "interrupted", "missing")
    return ", ".join(f"{names.count(name)} {name}" for name in order if name in names)


def eta_s(phase: Phase) -> float | None:
    """Seconds until the end of the phase at the present rate; None if there is no rate yet."""
    done = phase.done - phase.skipped
    if done <= 0:
        return None
    return (phase.total - phase.done) * max(0.0, time.time() - phase.since) / done


def needing_permission(sweep: Sweep, numbers: Iterable[int]) -> list[str]:
    """What a retry of these jobs would run, beside this package's code, and where it would write, beside the sweep."""
    needing = []
    if sweep.code is not None and not has_this_code(sweep):
        needing.append(f"{sweep.folder / sweep.code}, a copy of the code that differs from this package")
    if sweep.launcher == "slurm":
        needing.append(f"the settings of SLURM jobs in {sweep.folder / 'sweep.json'}, such as setup commands")
    output_root = sweep.folder.parents[2] if sweep.folder.parents[1].name == SWEEPS else sweep.folder
    for config in (sweep.config(number, trained=True) for number in numbers):
        needing += code_of(config)
        for place in (run_folder(config), Path(config.output_root)):
            if leads_out(Path(sweep.cwd) / place, output_root):
                needing.append(f"files in {Path(sweep.cwd) / place.parent}")
    return list(dict.fromkeys(needing))


def retry(sweep: Sweep, *, allow_code: bool = False) -> list[int]:
    """Start failed and interrupted jobs again, where the sweep ran. Returns their numbers.

    Raises UserError if that needs a permission and there is none (`allow_code`).
    """
    states = sweep.states()
    again = [n for n, s in states.items() if s.ended and s.name != "done" and sweep.jobs[n].folder is not None]
    if not again:
        return []
    if not allow_code:
        if needing := needing_permission(sweep, again):
            raise UserError(
                f"{sweep.folder}: --retry would run or write what this folder names:\n  "
                + "\n  ".join(needing)
                + f"\nIf you trust it, add {ALLOW}. The command that started the sweep needs no permission."
            )
        sweep.code = None  # the same files, copied anew
    say(f"Starting again: {', '.join(f'#{n}' for n in again)}")
    if not Path(sweep.cwd).is_dir():
        raise UserError(f"{sweep.folder}: the sweep was started in {sweep.cwd}, which is no longer there.")
    os.chdir(sweep.cwd)  # relative paths of its configuration are from there
    if sweep.launcher == "local":
        from unlearn.sweeps.local import run_local

        run_local(sweep, {number: sweep.config(number) for number in again})
    elif sweep.launcher == "packed":
        from unlearn.sweeps.worker import run_packed, shown_as_running

        with shown_as_running(sweep):
            run_packed(sweep, again)
    else:
        from unlearn.sweeps.submission import submit

        if not slurm.answers():
            raise UserError("this sweep ran on SLURM, and no SLURM answers here (scontrol ping).")
        before = [[n for n in again if sweep.tasks.get(n) == task] for task in dict.fromkeys(sweep.tasks.values())]
        never = [[n] for n in again if n not in sweep.tasks]
        submit(sweep, [group for group in before if group] + never, sweep.settings)
    return again


def latest() -> Path:
    """The folder of the last sweep below outputs/. Raises UserError if there is none."""
    folders = sorted(file.parent for file in Path("outputs/sweeps").glob("*/*/sweep.json"))
    if not folders:
        raise UserError("outputs/sweeps holds no sweep: name one's folder.")
    return folders[-1]


def show_status(folder: Path | None, *, retry_failed: bool, once: bool, allow_code: bool = False) -> int:
    """Show the table of a sweep, by default the last one: in a terminal live until all jobs have ended, unless `once`.

    When all have ended, the table of results by setting follows.
    Returns 0 if all jobs are done, 1 if some failed, 3 if some have not finished. Raises UserError without a sweep.
    """
    sweep = Sweep.open(folder or latest())
    if retry_failed:
        retry(sweep, allow_code=allow_code)
    states = sweep.states()
    if console.is_terminal and not once:
        with suppress(KeyboardInterrupt), Live(view(sweep, states), console=console, auto_refresh=False) as live:
            while not all(state.ended for state in states.values()):
                time.sleep(POLL_S)
                states = sweep.states(states)
                live.update(view(sweep, states), refresh=True)
    else:
        console.print(view(sweep, states))
    if all(state.ended for state in states.values()):
        show_summary(sweep)
    names = {state.name for state in states.values()}
    return 0 if names == {"done"} else 1 if "failed" in names else 3
