"""Running a sweep's jobs on several devices of this machine: a process for each, which sees no other.

submitit's local executor would do, but for its time limit, and it knows devices by numbers only: parts of a GPU (MIG)
have names.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from unlearn.config.schema import Config
from unlearn.screen import say
from unlearn.sweeps.packs import groups_that_share
from unlearn.sweeps.sweep import Sweep

VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_devices() -> list[str]:
    """The GPUs that this process may use, by number or name, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def spread(configs: Mapping[int, Config], devices: int, pack_size: int | None = None) -> list[list[int]]:
    """The jobs of each process: those that can share one, in even parts, at least one for each device."""
    parts = []
    for group in groups_that_share(configs):
        size = min(pack_size or len(group), -(-len(group) // devices))
        parts += [group[i : i + size] for i in range(0, len(group), size)]
    return parts


def run_on_devices(sweep: Sweep, parts: Sequence[list[int]], devices: Sequence[str]) -> dict[int, str]:
    """Run each part on the next device that is free. Returns {number: error} of failed jobs.

    A process that is killed or runs out of memory takes no other with it. An interruption ends all of them.
    """
    workers = _Workers(sweep, deque(parts))
    try:
        with ThreadPoolExecutor(len(devices)) as pool:
            failed = list(pool.map(workers.serve, devices))
    except BaseException:
        workers.stop()
        raise
    return {number: error for of_device in failed for number, error in of_device.items()}


@dataclass
class _Workers:
    """The parts that are left, and the processes that run."""

    sweep: Sweep
    parts: deque[list[int]]
    running: set[subprocess.Popen[bytes]] = field(default_factory=set)

    def serve(self, device: str) -> dict[int, str]:
        """Run parts on a device until none is left."""
        failed: dict[int, str] = {}
        while self.parts:
            try:
                numbers = self.parts.popleft()
            except IndexError:  # another device was faster
                break
            failed |= self._run(device, numbers)
        return failed

    def _run(self, device: str, numbers: list[int]) -> dict[int, str]:
        log = self.sweep.folder / "logs" / f"{numbers[0]}.log"
        log.parent.mkdir(exist_ok=True)
        named = ", ".join(f"#{number}" for number in numbers)
        say(f"Device {device}: {named} started; output: {log}")
        command = [sys.executable, "-m", "unlearn.sweeps.local", str(self.sweep.folder), ",".join(map(str, numbers))]
        with log.open("wb") as out:
            worker = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, VISIBLE: device}, cwd=self.sweep.cwd
            )
        self.running.add(worker)
        code = worker.wait()
        self.running.discard(worker)
        failed = self._failed(numbers, f"its process on device {device} ended with {_told(code)} ({log})")
        say(f"Device {device}: {named} ended" + (f", {len(failed)} failed" if failed else ""))
        return failed

    def _failed(self, numbers: list[int], otherwise: str) -> dict[int, str]:
        """The jobs that are not done, and why. What no process could write any more is written here."""
        failed = {}
        for number in numbers:
            state = self.sweep.states()[number]
            if state.name != "done":
                known = state.detail if state.name == "failed" else ""
                failed[number] = known or otherwise
                if not known:
                    self.sweep.keep_error(number, None, otherwise)
        return failed

    def stop(self) -> None:
        """Interrupt what runs, so that it leaves in order, and start nothing more."""
        self.parts.clear()
        for worker in list(self.running):
            worker.send_signal(signal.SIGINT)


def _told(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit status {code}"


def main() -> None:
    """`python -m unlearn.sweeps.local SWEEP NUMBERS`: the jobs of one process."""
    from unlearn.errors import UserError
    from unlearn.sweeps.worker import RunJobs

    folder, numbers = sys.argv[1:]
    try:
        RunJobs(Path(folder))([int(number) for number in numbers.split(",")])
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
