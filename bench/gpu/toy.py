"""The embedded model, trained: whole, resumed, or in a process that is killed.

`python -m bench.gpu.toy CHECKPOINT DEVICE DTYPE` trains, writes a checkpoint half-way and kills itself with SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

import unlearn
from unlearn.data.batches import batches
from unlearn.data.corpora import Topic, load_topic
from unlearn.methods.misdirection_loss import Misdirection
from unlearn.methods.noise import Augmentation
from unlearn.methods.randomness import generator
from unlearn.methods.rmu import RMU
from unlearn.methods.rna import RNA
from unlearn.models.cutting import CutModel
from unlearn.models.loading import Source, load_tokenizer, load_up_to
from unlearn.training.checkpoint import save_checkpoint
from unlearn.training.loop import Record, Schedule, train_variants
from unlearn.training.variant import Listener, Variant, make_variant

TOY = Path(unlearn.__file__).parent / "toy"
LAYER, C, ALPHA, NU, LR = 3, 3.0, 10.0, 0.5, 2e-4  # of conf/model/toy.yaml
STEPS, KILLED_AT = 6, 4  # of the training that is killed; its checkpoint is of step 3


def toy_cut(device: str, dtype: str) -> CutModel:
    """The model up to layer l."""
    return CutModel(load_up_to(Source(str(TOY / "model"), device=device, dtype=dtype), LAYER), LAYER)


def toy_variant(cut: CutModel) -> Variant:
    """RMU with RNA, not yet trained."""
    controls = {t: RMU(C).control_vector(cut.dim, generator(0, "control", t)).to(cut.device) for t in ("bio", "cyber")}
    objective = Misdirection(RMU(C), controls, ALPHA, "padding_and_bos", Augmentation(RNA(NU), 0))
    return make_variant(objective, cut.frozen, LR)


def toy_train(
    cut: CutModel,
    variant: Variant,
    steps: int,
) -> list[Record]:
    """Train on from where the variant is, up to `steps`; the checkpoint is half-way."""
    stream = batches(_topics(), steps=steps, batch_size=4, pad_id=0, side="right", start=variant.progress.steps)
    train_variants(cut, [variant], stream, mask_padding=False, schedule=Schedule(checkpoint=steps // 2))
    return variant.records


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

    class Killed(Listener):
        def on_checkpoint(self, variant: Variant) -> None:
            save_checkpoint(Path(file), variant)

        def on_record(self, variant: Variant, record: Record) -> None:
            if record.step == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.backends.cuda.matmul.allow_tf32 = False
    cut = toy_cut(device, dtype)
    variant = toy_variant(cut)
    variant.listener = Killed()
    toy_train(cut, variant, STEPS)


if __name__ == "__main__":
    main()
