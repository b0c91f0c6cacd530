"""A lock for folders that works across nodes: a folder with a heartbeat.

Process ids mean nothing on other nodes, and file locks are often disabled on a cluster's shared disks. So the holder
touches a file every `BEAT_S` seconds. After `STALE_S` seconds without a heartbeat it counts as dead. Ages are measured
by the file server's clock, since the nodes' clocks may differ. A holder counts as dead at once if its process is gone
from this machine, or if SLURM has restarted its job. Whoever finds it dead moves its folder away, and with it the
possibility to write (`unlearn.storage.hold`).

    FOLDER/.unlearn-lock/NAME/holder.json     the process that holds FOLDER, touched with each heartbeat
    FOLDER/.unlearn-lock/NAME/progress.json   its progress
    FOLDER/.unlearn-lock-*                    what is about to be put there, or has been moved away
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated

import psutil
from pydantic import Field, FiniteFloat, TypeAdapter

from unlearn.errors import UserError
from unlearn.storage import slurm_job
from unlearn.storage.files import discard, write_json
from unlearn.storage.hold import LOCK, Hold
from unlearn.storage.schema import Integer, read_as

HOLDER, PROGRESS = "holder.json", "progress.json"
BEAT_S, STALE_S = 10.0, 60.0
CLOCK_STEP_S = 60.0  # a process's start time changes when the machine's clock is set
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)  # what a folder's rename says where another one is


class Busy(UserError):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Phase:
    """The holder's progress: `done` of `total` steps, of which `skipped` were done before it began."""

    name: str = "starting"
    done: Integer = 0
    total: Integer = 0
    skipped: Integer = 0
    since: FiniteFloat = field(default_factory=time.time)  # seconds since the epoch, when the phase began


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder."""

    owner: str
    host: str
    pid_space: str  # process ids mean the same only within it
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    born: FiniteFloat  # when the process began: ids are used again
    slurm_job: str | None
    slurm_restarts: int

    @classmethod
    def me(cls) -> Holder:
        """This process."""
        return cls(
            owner=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid_space=_pid_space(),
            pid=os.getpid(),
            born=psutil.Process().create_time(),
            slurm_job=slurm_job.job_id(),
            slurm_restarts=slurm_job.restarts(),
        )

    @classmethod
    def read(cls, place: Path) -> Holder | None:
        """The holder whose place in the lock this is, or None."""
        try:
            return read_as(_HOLDER, place / HOLDER)
        except UserError:
            return None

    def known_dead(self) -> bool:
        """Whether this machine, or SLURM, can tell that the process has ended."""
        if (self.host, self.pid_space) == (socket.gethostname(), _pid_space()):
            try:
                return abs(psutil.Process(self.pid).create_time() - self.born) > CLOCK_STEP_S
            except psutil.NoSuchProcess:
                return True
        same_job = self.slurm_job is not None and self.slurm_job == slurm_job.job_id()
        return same_job and self.slurm_restarts < slurm_job.restarts()

    def __str__(self) -> str:
        job = f", SLURM job {self.slurm_job}" if self.slurm_job else ""
        return f"process {self.pid} on {self.host}{job}"


_HOLDER, _PHASE = TypeAdapter(Holder), TypeAdapter(Phase)


class FolderLock(Hold):
    """A context manager that holds `folder`, or raises `Busy` at once and says who does."""

    def __init__(self, folder: Path) -> None:
        self._me = Holder.me()
        super().__init__(folder / LOCK / self._me.owner)
        self._phase = Phase()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> FolderLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._enter():
            self._bury_the_dead()
        for left in self.folder.glob(f"{LOCK}-*"):  # by processes that were killed
            discard(left)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        _bury(self.place)

    def report(self, phase: Phase) -> None:
        """Write the progress with the next heartbeat. Raises Lost if another process has taken the folder over."""
        self._phase = phase
        self.check()

    def _enter(self) -> bool:
        """Put our place into the lock unless there is one. If several processes try, one succeeds.

        A folder cannot be renamed to the name of one that has something in it.
        """
        lock, prepared = self.place.parent, _beside(self.folder)
        place = prepared / self.place.name
        with suppress(OSError):  # a process that was killed may have left it empty
            lock.rmdir()
        try:
            place.mkdir(parents=True)
            (place / HOLDER).write_text(json.dumps(asdict(self._me)))
            prepared.rename(lock)
        except FileNotFoundError:  # whoever has just entered took ours for left behind
            return self.place.is_dir()
        except OSError as error:
            if error.errno not in TAKEN and not _places(self.folder):
                raise
            return self.place.is_dir()  # if it is ours, only the reply to the rename was lost
        finally:
            discard(prepared)
        return True

    def _bury_the_dead(self) -> None:
        """Take a dead holder's place out of the lock. Raises `Busy` if the holder is alive."""
        for place in _places(self.folder):
            holder, age = Holder.read(place), self._age(place)
            if age is None:
                continue  # it has left, or another process has buried it
            if holder is None and age < STALE_S:
                time.sleep(0.05)  # it is just leaving
            elif holder is not None and not holder.known_dead() and age < STALE_S:
                raise Busy(
                    f"{self.folder} is being worked on by {holder} (last heartbeat {age:.0f} s ago). If that process "
                    f"is dead, try again {STALE_S:.0f} s after its last heartbeat."
                )
            else:
                _bury(place)

    def _age(self, place: Path) -> float | None:
        """Seconds since the last heartbeat by the clock that stamps the files; None if the place is gone."""
        probe, file = _beside(self.folder), place / HOLDER
        try:
            probe.touch()
            return probe.stat().st_mtime - (file if file.is_file() else place).stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def _keep_beating(self) -> None:
        while not self._end.wait(BEAT_S):
            try:
                self._beat()
            except FileNotFoundError:  # lost
                return
            except OSError:  # a full disk or an unreachable server: the next heartbeat may succeed
                pass

    def _beat(self) -> None:
        """Touch our file and write the progress. Raises FileNotFoundError if we have lost the folder."""
        os.utime(self.place / HOLDER)
        write_json(self.place / PROGRESS, asdict(self._phase))


def phase_of(folder: Path) -> Phase | None:
    """The progress of a folder's holder, or None."""
    for place in _places(folder):
        with suppress(UserError):
            return read_as(_PHASE, place / PROGRESS)
    return None


def live_holder(folder: Path) -> Holder | None:
    """The live holder of a folder, or None, as far as this machine and its clock can tell."""
    for place in _places(folder):
        holder = Holder.read(place)
        with suppress(FileNotFoundError):
            if holder and not holder.known_dead() and time.time() - (place / HOLDER).stat().st_mtime < STALE_S:
                return holder
    return None


def _places(folder: Path) -> list[Path]:
    """The places in a folder's lock: one, or none if nobody holds it."""
    try:
        return list((folder / LOCK).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _bury(place: Path) -> None:
    """Take a place out of the lock, in one step, and remove it. Its holder can write no more."""
    grave = _beside(place.parent.parent)
    with suppress(OSError):  # another process has buried it
        place.rename(grave)
    discard(grave)
    with suppress(OSError):  # another process has entered
        place.parent.rmdir()


def _beside(folder: Path) -> Path:
    """A new name beside the lock."""
    return folder / f"{LOCK}-{uuid.uuid4().hex}"


def _pid_space() -> str:
    """Identifies this boot and container: process ids can only be compared within it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
