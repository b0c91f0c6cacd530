"""Evaluating on several devices at once: one more process per device, which does a part of each task of this process.

Each process loads the model and all questions, plans all batches, and computes the batches that are in no journal yet,
its own part first (`unlearn.evaluation.journal`). This process reads the answers from the journals, so they are the
same to the bit. If another process ends early, this process computes its part.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from unlearn.config.schema import Config
from unlearn.config.settle import settle
from unlearn.errors import UserError
from unlearn.evaluation.journal import Sharing
from unlearn.models.devices import VISIBLE, count_gpus, visible_devices
from unlearn.runs.inputs import Inputs, load_evaluation_inputs, make_evaluator
from unlearn.screen import say

if TYPE_CHECKING:
    from unlearn.evaluation.evaluator import Evaluator, Task  # in annotations

CODE = Path(__file__).parents[2]  # the folder that holds the package


@contextmanager
def open_evaluator(config: Config, inputs: Inputs) -> Iterator[Evaluator]:
    """The evaluator of these inputs, on as many devices as `eval.devices` says."""
    devices = other_devices(config)
    if not devices:
        yield make_evaluator(config, inputs)
        return
    with tempfile.TemporaryDirectory() as logs:
        others = Others(config, devices, Path(logs))
        try:
            yield make_evaluator(config, inputs, others.sharing, others.announce)
        finally:
            others.end()


def other_devices(config: Config) -> list[str | None]:
    """The values of CUDA_VISIBLE_DEVICES for the other processes; None is the CPU.

    Raises UserError if `eval.devices` exceeds the number of GPUs. On a machine without a GPU, `eval.devices` is the
    number of processes.
    """
    wanted, device = config.eval.devices, config.model.device
    if device == "cpu" or not count_gpus():
        return [None] * ((wanted or 1) - 1)
    visible = visible_devices()
    usable = len(visible) if device in ("auto", "cuda") else 1
    if wanted is not None and wanted > usable:
        raise UserError(
            f"eval.devices={wanted} is not allowed: of {len(visible)} GPUs, {usable} can share an evaluation with "
            f"model.device={device}."
        )
    return list(visible[1 : wanted or usable])


def check_devices(config: Config) -> None:
    """Raise UserError if `eval.devices` is more than there are."""
    other_devices(config)


class Others:
    """The other processes. The first announcement starts them."""

    def __init__(self, config: Config, devices: list[str | None], logs: Path) -> None:
        self.sharing = Sharing(0, len(devices) + 1)
        self._config, self._devices, self._logs = config, devices, logs
        self._processes: list[subprocess.Popen[str]] = []

    def announce(self, task: Task) -> None:
        """Let the other processes do their part of this task."""
        if not self._processes:
            self._processes = [self._start(place, device) for place, device in enumerate(self._devices, 1)]
            say(f"Evaluating on {len(self._devices) + 1} devices at once")
        for process in self._processes:
            _write(process, asdict(task))

    def end(self) -> None:
        """End the processes by closing their stdin. If one has ended early, show the last lines of its output."""
        for place, process in enumerate(self._processes, 1):
            if process.poll() is not None:
                lines = self._log(place).read_text(errors="replace").strip().splitlines()[-3:]
                message = f"Process {place} of this evaluation ended early. This process computed its part."
                say("\n".join([message, *lines]))
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            process.wait()

    def _start(self, place: int, device: str | None) -> subprocess.Popen[str]:
        visible = {} if device is None else {VISIBLE: device}
        paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self._log(place).open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "unlearn.runs.sharing", str(place), str(self.sharing.count)],
                env={**os.environ, **visible, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the first process, which then ends the others
                text=True,
            )
        _write(process, asdict(self._config))
        return process

    def _log(self, place: int) -> Path:
        return self._logs / f"{place}.log"


def _write(process: subprocess.Popen[str], message: object) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended, which `Others.end` reports
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()


def main() -> None:
    """`python -m unlearn.runs.sharing PLACE COUNT`: a configuration on stdin, then a task on each line."""
    sharing = Sharing(int(sys.argv[1]), int(sys.argv[2]))
    config = settle(OmegaConf.create(json.loads(sys.stdin.readline())), trained=True)
    tasks: SimpleQueue[Task] = SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    inputs = load_evaluation_inputs(config)
    evaluator = make_evaluator(config, inputs, sharing)
    while True:
        task = tasks.get()
        course = inputs.asked.course if task.course else None
        (evaluator if course is None else evaluator.asking(course)).help(task)


def _read_tasks(tasks: SimpleQueue[Task]) -> None:
    """Queue the announced tasks. At the end of stdin, end this process at once: its results are in the journals."""
    from unlearn.evaluation.evaluator import Task  # imports lm-eval, which takes seconds

    try:
        for line in sys.stdin:
            message = json.loads(line)
            models = [(delta, partial) for delta, partial in message["models"]]
            tasks.put(Task(models, message["holds"], message["course"]))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
