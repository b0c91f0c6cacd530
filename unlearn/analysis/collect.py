"""Finding runs in folders of runs, of sweeps, or any folder above them. Nothing is dropped silently.

Failed, unfinished, missing and corrupt runs are in the list, too, with their status and the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from unlearn.config.identity import TRIALS, identity
from unlearn.errors import UserError, describe
from unlearn.records.run import RECORD, read_record
from unlearn.records.samples import SAMPLES, Sample, read_samples
from unlearn.records.scores import KEY, Score, read_scores
from unlearn.runs.evaluations import Evaluation, evaluations_of
from unlearn.runs.folder import check_results
from unlearn.storage.schema import leads_out
from unlearn.sweeps.sweep import Job, Sweep

# Keys of `eval` that determine the content of questions, beside the tasks.
OF_QUESTIONS = (
    *("num_fewshot", "limit", "subset", "questions", "chat_template", "system_instruction", "seed"),
    *("replaced", "position"),
)
DESCRIBED = 200  # at most so many jobs that never began have their configuration composed, which takes a while


@dataclass(frozen=True)
class Run:
    """A run that was found. `status` is done, failed, unfinished, missing or corrupt; only done runs have scores.

    Scores and samples are those of its own evaluation and of later ones. What was measured twice is there once, as it
    was measured first.
    """

    folder: Path
    status: str
    why: str = ""
    record: dict[str, Any] = field(default_factory=dict)  # run.json
    scores: list[Score] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the run can be shown."""
        return self.status == "done"

    @property
    def identity(self) -> dict[str, Any]:
        """The run's identity; empty if it is not known."""
        return self.record.get("identity", {})

    @property
    def adopted(self) -> bool:
        """Whether it was made of two checkpoints, without training; settings that nobody gave are not in `identity`."""
        return "adopted" in self.identity

    @property
    def training(self) -> dict[str, float]:
        """The final figures of its training."""
        return self.record.get("trained", {})

    @property
    def roles(self) -> dict[str, list[str]]:
        """Its tasks by role, each role as the first evaluation that asked it has it: later ones may add roles."""
        roles: dict[str, list[str]] = {}
        for evaluation in self.evaluations:
            for role, tasks in evaluation.roles.items():
                roles[role] = roles.get(role) or tasks
        return roles

    @property
    def queries(self) -> list[str]:
        """The kinds of query that were asked."""
        return list(dict.fromkeys(query for e in self.evaluations for query in e.config["queries"]))

    def question_hash(self, query: str, role: str) -> str | None:
        """The hash of all that the figures of a query and role are computed from; None if it was not asked."""
        hashes = (evaluation.questions.get(query, {}).get(role) for evaluation in self.evaluations)
        return next((sha256 for sha256 in hashes if sha256 is not None), None)

    def samples(self) -> Sequence[Sample]:
        """What its models made of every question and text. Raises UserError for a file that cannot be read."""
        places = [(e, roles) for e, roles in _asked_otherwise(self.evaluations) if (e.folder / SAMPLES).is_file()]
        return _samples(tuple((e.folder, (e.folder / SAMPLES).stat().st_mtime_ns, roles) for e, roles in places))


@lru_cache(maxsize=16)  # several figures are of the same runs
def _samples(files: tuple[tuple[Path, int, frozenset[str]], ...]) -> Sequence[Sample]:
    """The samples of evaluations, each question once, without these roles; the time of a file tells its state."""
    samples: dict[tuple[object, ...], Sample] = {}
    for folder, _, left_out in files:
        for sample in read_samples(folder):
            if sample.role not in left_out:
                key = (sample.model, sample.role, sample.task, sample.query, sample.id)
                first = samples.setdefault(key, sample)
                if first.maxlogits is None and sample.maxlogits and first.question == sample.question:
                    maxlogits = {"maxlogits": sample.maxlogits, "maxlogit_tokens": sample.maxlogit_tokens}
                    samples[key] = replace(first, **maxlogits)  # type: ignore[arg-type]
    return tuple(samples.values())


def _settings(evaluation: Evaluation, role: str) -> list[Any]:
    """What determines the questions of a role, or its texts, beside the tasks."""
    given = evaluation.config.get("texts", {}).items()  # an earlier version lacks later keys, which are null by default
    texts = {key: value for key, value in given if key != "corpora" and value is not None}
    is_text = role not in evaluation.config["tasks"]
    return [*(evaluation.config.get(key) for key in OF_QUESTIONS), texts if is_text else None]


def _asked_otherwise(evaluations: Sequence[Evaluation]) -> list[tuple[Evaluation, frozenset[str]]]:
    """Each evaluation, and the roles that an earlier one had asked with other tasks or settings.

    They do not count: a run's figures of a role are all of the same questions. They stay in their evaluation's folder.
    """
    first: dict[str, Evaluation] = {}
    otherwise = []
    for evaluation in evaluations:
        roles = set()
        for role, tasks in evaluation.roles.items():
            if tasks:
                other = first.setdefault(role, evaluation)
                if other.roles[role] != tasks or _settings(other, role) != _settings(evaluation, role):
                    roles.add(role)
        otherwise.append((evaluation, frozenset(roles)))
    return otherwise


def collect(folders: Sequence[Path]) -> list[Run]:
    """The runs of all these folders, each once, in the order of their paths. Raises UserError if there are none."""
    runs_by_place: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder.")
        runs = list(_below(folder))
        if not runs:
            raise UserError(f"{folder}: no run is here (no run.json) and no sweep (no sweep.json), at any depth.")
        for run in runs:
            place = run.folder.resolve()
            if place not in runs_by_place or runs_by_place[place].status == "corrupt":  # as a link that is not followed
                runs_by_place[place] = run
    return [runs_by_place[path] for path in sorted(runs_by_place)]


def _below(top: Path) -> Iterator[Run]:
    """The runs in and below a folder."""
    for place in places_below(top):
        if isinstance(place, Run):
            yield place
        elif (place / RECORD).exists():
            yield read_run(place)
        else:
            yield from _of_sweep(place)


def places_below(top: Path) -> Iterator[Path | Run]:
    """The folders of runs and of sweeps in and below a folder; what is below one of these is its own.

    The trials of `rna.nu=auto` are left out, unless `top` is their folder: what they were asked chose nu.
    Links that lead out, and folders that cannot be read, are told as corrupt runs.
    """
    folders, seen = [top], set()
    while folders:
        folder = folders.pop()
        if folder.resolve() in seen:
            continue
        if leads_out(folder, top):
            yield Run(folder, "corrupt", f"a link that leads out of {top} is not followed: name {folder.resolve()}")
            continue
        seen.add(folder.resolve())
        if (folder / RECORD).exists() or (folder / "sweep.json").is_file():
            yield folder
        else:
            try:
                below = [path for path in folder.iterdir() if path.is_dir() and path.name != TRIALS]
                folders += sorted(below, reverse=True)
            except OSError as error:
                yield Run(folder, "corrupt", f"cannot be read: {error}")


def read_run(folder: Path) -> Run:
    """The run of a folder that has a run.json."""
    try:
        record = read_record(folder)
        check_results(folder, record)
        if record.get("status") == "failed":
            return Run(folder, "failed", str(record.get("error", "")), record)
        if record.get("status") != "done":
            return Run(folder, "unfinished", "not finished, or interrupted", record)
        evaluations = evaluations_of(folder, record)
        return Run(folder, "done", "", record, _scores(evaluations), evaluations)
    except UserError as error:
        return Run(folder, "corrupt", str(error))


def _scores(evaluations: Sequence[Evaluation]) -> list[Score]:
    """The scores of all evaluations, each once. Raises UserError for a file that cannot be read and for no number."""
    scores: dict[tuple[object, ...], Score] = {}
    for evaluation, left_out in _asked_otherwise(evaluations):
        for score in read_scores(evaluation.folder):
            if not math.isfinite(score.value):
                what = ", ".join((score.model, score.task, score.query, score.measure))
                raise UserError(f"{evaluation.folder}: {what} is no finite number: {score.value}")
            if score.role not in left_out:
                scores.setdefault(tuple(getattr(score, column) for column in KEY), score)
    return list(scores.values())


def _of_sweep(folder: Path) -> Iterator[Run]:
    """The runs of a sweep's jobs, those too that were never begun."""
    try:
        sweep = Sweep.open(folder)
    except UserError as error:
        yield Run(folder, "corrupt", str(error))
        return
    never = 0
    for job in sweep.jobs.values():
        run = _run_folder(sweep, job)
        if run is not None and (run / RECORD).is_file():
            yield read_run(run)
        else:
            never += 1
            yield _never_begun(sweep, job, run, described=never <= DESCRIBED)


def _run_folder(sweep: Sweep, job: Job) -> Path | None:
    """Where a job's run is: at its recorded path or, where the whole output folder was moved, beside the sweep."""
    if job.folder is None:
        return None
    recorded = Path(job.folder)
    moved = [parent / "runs" / recorded.name for parent in sweep.folder.parents]
    return recorded if recorded.is_dir() else next((path for path in moved if path.is_dir()), recorded)


def _never_begun(sweep: Sweep, job: Job, folder: Path | None, *, described: bool) -> Run:
    """A job without a run.json: its configuration, if wanted and as far as it can be known, and what is said of it."""
    status, why, record = "missing", "never begun", {}
    try:
        if job.error is not None:
            status, why = "failed", job.error
        elif (error := sweep.error_of(job.number)) is not None:
            status, why = "failed", error["error"]
        if described and job.error is None:
            config = sweep.config(job.number, trained=True)
            record = {"config": asdict(config), "identity": identity(config)}
    except Exception as problem:  # whatever is wrong with files and configurations that were never run
        why += f" (more cannot be read: {describe(problem)})"
    return Run(folder or sweep.folder / str(job.number), status, f"{sweep.label(job.number)}: {why}", record)
