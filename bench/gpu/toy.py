"""The embedded model, trained: whole, resumed, or in a process that is killed.

`python -m bench.gpu.toy CHECKPOINT DEVICE DTYPE` trains, writes a checkpoint half-way and kills itself with SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import unlearn
from bench import shapes
from unlearn.data.batches import batches
from unlearn.data.corpora import Topic, load_topic
from unlearn.methods import rna
from unlearn.methods.misdirection import Misdirection
from unlearn.methods.randomness import generator
from unlearn.methods.rmu import RMU
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_tokenizer, load_up_to
from unlearn.training.checkpoint import save_checkpoint
from unlearn.training.loop import Record, train
from unlearn.training.variant import Variant, make_variant

TOY = Path(unlearn.__file__).parent / "toy"
LAYER, C, ALPHA, NU, LR = 3, 3.0, 10.0, 0.5, 2e-4  # of conf/model/toy.yaml
STEPS, KILLED_AT = 6, 4  # of the training that is killed; its checkpoint is of step 3


def toy_cut(device: str, dtype: str) -> CutModel:
    """The model up to layer l."""
    return CutModel(load_up_to(Source(str(TOY / "model"), device=device, dtype=dtype), LAYER), LAYER)


def toy_variant(cut: CutModel) -> Variant:
    """RMU with RNA, not yet trained."""
    controls = {t: RMU(C).control_vector(cut.dim, generator(0, "control", t)).to(cut.device) for t in ("bio", "cyber")}
    settings = shapes.OPTIMIZER | {"lr": LR, "precision": "master", "optimizer": "adamw"}
    return make_variant(
        Misdirection(RMU(C), controls, ALPHA, "padding_and_bos", rna.RNA(NU, "std", 0)), cut.frozen, **settings
    )


def toy_train(
    cut: CutModel,
    variant: Variant,
    steps: int,
    on_checkpoint: Callable[[Variant], None] | None = None,
    on_record: Callable[[Record], None] = lambda _: None,
) -> list[Record]:
    """Train on from where the variant is, up to `steps`; the checkpoint is half-way."""
    records: list[Record] = []

    def keep(_variant: Variant, record: Record) -> None:
        records.append(record)
        on_record(record)

    stream = batches(_topics(), steps=steps, batch_size=4, pad_id=0, side="right", start=variant.progress.steps)
    checkpoints: dict[str, Any] = {}
    if on_checkpoint is not None:
        checkpoints = {"checkpoint_every": steps // 2, "on_checkpoint": on_checkpoint}
    train(cut, [variant], stream, mask_padding=False, log_every=1, on_record=keep, **checkpoints)
    return records


def _topics() -> list[Topic]:
    tokenizer = load_tokenizer(Source(str(TOY / "model")))
    lengths = {"max_length": 128, "retain_max_length": 128, "documents": 64, "on_exhausted": "cycle"}
    files = {
        name: (str(TOY / f"data/forget-{name}.jsonl"), str(TOY / "data/retain.jsonl")) for name in ("bio", "cyber")
    }
    return [load_topic(name, *pair, tokenizer, **lengths) for name, pair in files.items()]  # type: ignore[arg-type]


def killed_training(checkpoint: Path, device: str, dtype: str) -> int:
    """Train in another process until it is killed; returns its exit status, -9 if all went well."""
    command = [sys.executable, "-m", "bench.gpu.toy", str(checkpoint), device, dtype]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    if done.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the process was not killed: status {done.returncode}, {done.stderr[-200:]}")
    return done.returncode


def main() -> None:
    """Train until killed."""
    file, device, dtype = sys.argv[1:]

    def kill(record: Record) -> None:
        if record.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.backends.cuda.matmul.allow_tf32 = False
    cut = toy_cut(device, dtype)
    toy_train(cut, toy_variant(cut), STEPS, lambda variant: save_checkpoint(Path(file), variant), kill)


if __name__ == "__main__":
    main()
