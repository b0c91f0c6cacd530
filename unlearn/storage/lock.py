"""A lock for folders that works across nodes: a file with a heartbeat.

Process ids mean nothing on other nodes, and file locks are often disabled on a cluster's shared disks. So the holder
touches its file every `BEAT_S` seconds. After `STALE_S` seconds without a heartbeat it counts as dead. Ages are
measured by the file server's clock, since the nodes' clocks may differ. A holder counts as dead at once if its process
is gone from this machine, or if SLURM has restarted its job. A second file has the holder's progress.
"""

from __future__ import annotations

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

import psutil

from unlearn.errors import UserError
from unlearn.storage import slurm_job
from unlearn.storage.files import temporary, write_json

LOCK, PROGRESS = "alive.json", "progress.json"
BEAT_S, STALE_S = 10.0, 60.0
CLOCK_STEP_S = 60.0  # a process's start time changes when the machine's clock is set


class Busy(UserError):
    """Another process holds the lock."""


class Lost(UserError):
    """This process lost the lock: others may count it as dead, so it must not write to the folder any more."""


@dataclass(frozen=True)
class Phase:
    """The holder's progress: `done` of `total` steps, of which `skipped` were done before it began."""

    name: str = "starting"
    done: int = 0
    total: int = 0
    skipped: int = 0
    since: float = field(default_factory=time.time)  # seconds since the epoch, when the phase began


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder."""

    owner: str
    host: str
    pid_space: str  # process ids mean the same only within it
    pid: int
    born: float  # when the process began: ids are used again
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
    def read(cls, file: Path) -> Holder | None:
        """The holder that wrote the file, or None."""
        try:
            return cls(**json.loads(file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
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


class FolderLock:
    """A context manager that holds `folder`, or raises `Busy` at once and says who does."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / LOCK
        self._me = Holder.me()
        self._phase = Phase()
        self._lost = False
        self._answered = time.monotonic()  # when the file server last took a heartbeat
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)

    def __enter__(self) -> FolderLock:
        self._folder.mkdir(parents=True, exist_ok=True)
        while not self._link():
            self._remove_if_dead()
        self._answered = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        if Holder.read(self._file) == self._me:
            (self._folder / PROGRESS).unlink(missing_ok=True)
            self._file.unlink(missing_ok=True)

    def report(self, phase: Phase) -> None:
        """Write the progress with the next heartbeat, and `check`."""
        self._phase = phase
        self.check()

    def check(self) -> None:
        """Raise `Lost` if no heartbeat was written for so long that another process may have taken the folder over."""
        if self._lost or time.monotonic() - self._answered > STALE_S:
            raise Lost(
                f"{self._folder}: lost the lock. There was no heartbeat for {STALE_S:.0f} s, so another process may "
                "have taken over."
            )

    def _link(self) -> bool:
        """Create our file unless there is one. If several processes try, one succeeds, also on network disks."""
        mine = self._scratch()
        try:
            mine.write_text(json.dumps(asdict(self._me)))
            os.link(mine, self._file)
        except FileExistsError:
            return mine.stat().st_nlink == 2  # the link was made; only the reply was lost
        except FileNotFoundError:
            return False  # another holder, just started, removed it
        finally:
            mine.unlink(missing_ok=True)
        return True

    def _remove_if_dead(self) -> None:
        """Remove the file of a dead holder. Raises `Busy` if the holder is alive."""
        holder = Holder.read(self._file)
        age = self._age()
        if age is None or (holder is None and age < STALE_S):
            time.sleep(0.05)  # removed, or replaced by another holder, meanwhile
            return
        if holder is not None and not holder.known_dead() and age < STALE_S:
            raise Busy(
                f"{self._folder} is being worked on by {holder} (last heartbeat {age:.0f} s ago). If that process is "
                f"dead, try again {STALE_S:.0f} s after its last heartbeat."
            )
        if Holder.read(self._file) != holder:
            return
        # If several processes find it dead, one succeeds in moving it. If it is a new holder's, it is moved back.
        removed = self._scratch()
        with suppress(FileNotFoundError):
            self._file.rename(removed)
            if Holder.read(removed) != holder:
                with suppress(FileExistsError):
                    os.link(removed, self._file)
            removed.unlink(missing_ok=True)

    def _age(self) -> float | None:
        """Seconds since the last heartbeat by the clock that stamps the files; None if there is no file."""
        probe = self._scratch()
        try:
            probe.touch()
            return probe.stat().st_mtime - self._file.stat().st_mtime
        except FileNotFoundError:
            return None
        finally:
            probe.unlink(missing_ok=True)

    def _scratch(self) -> Path:
        return temporary(self._file, uuid.uuid4().hex)

    def _keep_beating(self) -> None:
        while not self._end.wait(BEAT_S):
            # A full disk or an unreachable server: the next heartbeat may succeed.
            with suppress(OSError):
                if not self._beat():
                    self._lost = True
                    return

    def _beat(self) -> bool:
        """Touch our file and write the progress. False if the file is another process's."""
        holder = Holder.read(self._file)
        if holder != self._me and not (holder is None and self._link()):
            return False
        os.utime(self._file)
        self._answered = time.monotonic()
        write_json(self._folder / PROGRESS, asdict(self._phase))
        return True


def phase_of(folder: Path) -> Phase | None:
    """The progress of a folder's holder, or None."""
    try:
        return Phase(**json.loads((folder / PROGRESS).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def live_holder(folder: Path) -> Holder | None:
    """The live holder of a folder, or None, as far as this machine and its clock can tell."""
    file = folder / LOCK
    holder = Holder.read(file)
    if holder is None or holder.known_dead():
        return None
    try:
        return holder if time.time() - file.stat().st_mtime < STALE_S else None
    except FileNotFoundError:
        return None


def _pid_space() -> str:
    """Identifies this boot and container: process ids can only be compared within it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
