"""Running a sweep's jobs on several devices of this machine: a process for each, which sees no other.

submitit's local executor is not used: it has a time limit, and its processes outlive the one that waits for them.
concurrent.futures is not used: when one of its processes dies, it ends all of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearn.config.schema import Config
from unlearn.errors import UserError
from unlearn.models.devices import VISIBLE, count_gpus, visible_devices
from unlearn.screen import plain, say
from unlearn.sweeps.packs import by_run, groups_that_share, packs
from unlearn.sweeps.submission import copy_code
from unlearn.sweeps.sweep import Sweep
from unlearn.sweeps.worker import run_jobs, shown_as_running

ANY_DEVICE = ("auto", "cuda", "cpu")  # values of model.device that name none of several GPUs
POLL_S = 0.2
GRACE_S = 60.0  # for an interrupted process to end in order


def run_local(sweep: Sweep, configs: Mapping[int, Config]) -> dict[int, str]:
    """Run these jobs with `sweep.settings`. Returns {number: error} of failed jobs.

    Raises UserError, before any starts, for devices or a size of packs that cannot be.
    """
    for config in configs.values():
        if config.model.device not in ANY_DEVICE:
            raise UserError(
                f"model.device={config.model.device}: with hydra/launcher=local each process sees one device. "
                f"Allowed: {', '.join(ANY_DEVICE)}. hydra.launcher.devices chooses among several."
            )
    devices = chosen_devices(sweep.settings["devices"])
    parts = spread(configs, len(devices), sweep.settings["pack_size"])
    with shown_as_running(sweep):
        return run_on_devices(sweep, parts, devices)


def chosen_devices(places: Sequence[int] | None) -> list[str]:
    """CUDA_VISIBLE_DEVICES for each of `places` among the visible devices; None: all that are visible.

    Without a GPU and without CUDA_VISIBLE_DEVICES, each number stands for a process on the CPU. Raises UserError for a
    place that is not there, or twice.
    """
    visible, variable = visible_devices(), os.environ.get(VISIBLE)
    if places is None and visible:
        return visible
    if places and len(set(places)) == len(places):
        if not visible and variable is None:
            return [str(place) for place in places]
        if all(0 <= place < len(visible) for place in places):
            return [visible[place] for place in places]
    given = "null" if places is None else f"[{','.join(map(str, places))}]"
    allowed = (
        f"the GPUs here are {', '.join(map(str, range(len(visible))))}, each once" if visible else "there is no GPU"
    )
    setting = "" if variable is None else f" ({VISIBLE} is {variable!r})"
    raise UserError(
        f"hydra.launcher.devices={given} is not allowed: {allowed}{setting}. hydra/launcher=packed needs none."
    )


def spread(configs: Mapping[int, Config], devices: int, pack_size: int | None = None) -> list[list[int]]:
    """The jobs of each process: those that can share one.

    Of groups of one size, as many stay whole as make the same number for each device. The others are split evenly. What
    takes longest begins first. Raises UserError if `pack_size`, the most jobs of a process, is no positive number.
    """
    by_size: dict[int, list[dict[int, Config]]] = {}
    for group in groups_that_share(configs):
        jobs = {n: configs[n] for n in group}
        by_size.setdefault(len(by_run(jobs)), []).append(jobs)
    parts = []
    for size, groups in sorted(by_size.items(), reverse=True):
        whole = len(groups) - len(groups) % devices
        for place, jobs in enumerate(groups):
            most = size if place < whole else -(-size // devices)
            parts += packs(jobs, most if pack_size is None else min(most, pack_size))
    return parts


@dataclass(frozen=True)
class _Worker:
    """A process that runs some jobs of a sweep on a device. It ends when its stdin is closed."""

    device: str
    numbers: list[int]
    log: Path
    process: subprocess.Popen[bytes]

    def leave(self) -> None:
        """Close its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.close()


def run_on_devices(sweep: Sweep, parts: Sequence[list[int]], devices: Sequence[str]) -> dict[int, str]:
    """Run each part on the next device that is free. Returns {number: error} of failed jobs.

    A process that is killed or runs out of memory takes no other with it. Raises UserError when the user interrupts,
    which ends all of them.
    """
    code = copy_code(sweep)
    for number in (number for part in parts for number in part):
        sweep.keep_error(number, None, None)  # of an earlier attempt
    kind = "gpu" if count_gpus() else "cpu"
    if kind == "cpu":
        say("There is no GPU here: the jobs run on the CPU.")
    waiting, free = deque(parts), deque(devices)
    running: list[_Worker] = []
    errors: dict[int, str] = {}
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(sweep, code, waiting.popleft(), free.popleft(), kind))
            time.sleep(POLL_S)
            for worker in [worker for worker in running if worker.process.poll() is not None]:
                running.remove(worker)
                free.append(worker.device)
                errors |= _errors(sweep, worker)
    except KeyboardInterrupt:
        raise UserError(
            "Interrupted. What is done is kept. The same command goes on, and so does unlearn status --retry "
            f"{sweep.folder}"
        ) from None
    finally:
        _stop(running)
    return errors


def _start(sweep: Sweep, code: str, numbers: list[int], device: str, kind: str) -> _Worker:
    log = sweep.folder / "logs" / f"{numbers[0]}.log"
    log.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-u", "-m", "unlearn.sweeps.local", str(sweep.folder), ",".join(map(str, numbers))]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, kind],
            cwd=code,
            env={**os.environ, VISIBLE: device},
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches this process alone, which then ends the others
        )
    say(f"Device {device}: {_listed(numbers)} started; output: {log}")
    return _Worker(device, numbers, log, process)


def _errors(sweep: Sweep, worker: _Worker) -> dict[int, str]:
    """The jobs of a process that has ended that are not done, and why. What it could not write is written here."""
    worker.leave()
    status = worker.process.returncode
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit status {status}"
    states, errors = sweep.states(), {}
    for number in (number for number in worker.numbers if states[number].name != "done"):
        errors[number] = states[number].detail if states[number].name == "failed" else ""
        if not errors[number]:
            errors[number] = f"its process on device {worker.device} was ended {how}; output: {worker.log}"
            sweep.keep_error(number, None, errors[number])
    if done := [number for number in worker.numbers if number not in errors]:
        say(f"Device {worker.device}: {_listed(done)} done")
    if errors:
        say(f"Device {worker.device}: {_listed(errors)} failed; output: {worker.log}")
    return errors


def _stop(workers: Sequence[_Worker]) -> None:
    """Let processes end in order. A second interruption, or a minute, ends them at once: runs resume from that, too."""
    if workers:
        say(f"Ending {len(workers)} processes; Ctrl-C ends them at once.")
    try:
        for worker in workers:
            worker.leave()
        for worker in workers:
            worker.process.wait(GRACE_S)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        pass
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(f"#{number}" for number in numbers)


def main() -> None:
    """`python -m unlearn.sweeps.local SWEEP NUMBERS gpu|cpu`: the jobs of one process."""
    folder, numbers, kind = sys.argv[1:]
    for ends in (signal.SIGINT, signal.SIGTERM):  # a shell's background processes ignore SIGINT
        signal.signal(ends, signal.default_int_handler)
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    try:
        if kind == "gpu" and count_gpus() != 1:  # model.device=auto would be the CPU
            raise UserError(f"CUDA finds no device {os.environ[VISIBLE]}.")
        run_jobs(Path(folder), [int(number) for number in numbers.split(",")])
    except UserError as error:
        sys.exit(plain(str(error)))


def _end_with_launcher() -> None:
    """Interrupt this process when stdin is closed: by the launcher, or because the launcher was killed."""
    os.read(sys.stdin.fileno(), 1)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


if __name__ == "__main__":
    main()
