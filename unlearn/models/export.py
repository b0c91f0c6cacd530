"""Writing an unlearned model as a Hugging Face checkpoint."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, IMAGE_PROCESSOR_NAME, PROCESSOR_NAME, VIDEO_PROCESSOR_NAME

from unlearn.errors import UserError
from unlearn.models.delta import check_delta, dtype_of, load_delta, replaced
from unlearn.models.loading import BALANCED, Source, cached, load_tokenizer, load_whole
from unlearn.records.run import RECORD, read_record
from unlearn.storage.files import check_writable
from unlearn.storage.schema import checked

PROCESSORS = (PROCESSOR_NAME, IMAGE_PROCESSOR_NAME, VIDEO_PROCESSOR_NAME)  # files of a multimodal checkpoint


def export(run_dir: Path, out_dir: Path, model_path: str | None = None, *, trust_remote_code: bool = False) -> None:
    """Write base model plus delta, and the tokenizer, in the run's dtype. `from_pretrained(out_dir)` loads it.

    A multimodal checkpoint keeps its towers and the configuration of its processors.

    Args:
        run_dir: the folder of a run, with run.json and delta.safetensors.
        out_dir: a folder that does not exist or is empty.
        model_path: the base model's current path, if it was moved.
        trust_remote_code: whether code of the base model's checkpoint may run. The value in run.json is ignored.

    Raises:
        UserError: a folder is not as above, or the base model is not the one that the run trained.
    """
    source = _source_of(run_dir)
    _check_empty(out_dir)
    check_writable(out_dir, "The model goes there.")
    weights, metadata = load_delta(run_dir / "delta.safetensors")
    source = dataclasses.replace(
        source,
        path=model_path or source.path,
        device=BALANCED if source.device == BALANCED else "cpu",
        dtype=dtype_of(run_dir / "delta.safetensors"),
        trust_remote_code=trust_remote_code,
    )
    tokenizer = load_tokenizer(source)
    model = load_whole(source)
    check_delta(model, weights, metadata)
    write_checkpoint(out_dir, model, weights, tokenizer, source)


def write_checkpoint(
    out_dir: Path,
    model: PreTrainedModel,
    weights: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
    source: Source | None,
) -> None:
    """Write a whole model with some matrices replaced. The model in memory is not changed.

    Raises UserError if `out_dir` exists and is not an empty folder.
    """
    _check_empty(out_dir)
    with replaced(model, weights):
        model.save_pretrained(out_dir)
    for stored in out_dir.glob("*.safetensors"):  # safetensors makes files that nobody else may read
        shutil.copymode(out_dir / CONFIG_NAME, stored)
    if tokenizer is not None:
        tokenizer.save_pretrained(out_dir)
    if source is None:
        return
    for name in PROCESSORS:
        file = cached(source, name)
        if file is not None:
            shutil.copyfile(file, out_dir / name)


def _check_empty(out_dir: Path) -> None:
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} exists and is not an empty folder. Choose another folder.")


def _source_of(run_dir: Path) -> Source:
    """The base model in a run's record. Whether its code may run is not read there."""
    if not (run_dir / RECORD).exists():
        raise UserError(f"{run_dir} is not a run's folder: it has no {RECORD}.")
    model = read_record(run_dir).get("config", {}).get("model")
    settings = {field.name: model[field.name] for field in dataclasses.fields(Source) if field.name in (model or {})}
    source = checked(TypeAdapter(Source), settings, run_dir / RECORD, "config.model")
    return dataclasses.replace(source, trust_remote_code=False)
