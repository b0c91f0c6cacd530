"""Export: a checkpoint that transformers loads and whose logits are those of base + delta."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.experiment import run
from unlearn.models.delta import apply_delta, load_delta
from unlearn.models.export import export

TOY = ROOT / "unlearn/toy/model"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_equal_base_plus_delta(short, tmp_path, dtype):
    folder = run(short(f"model.dtype={dtype}", "train.lr=1e-2"))
    out = tmp_path / "exported"
    export(folder, out)
    exported = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    base = AutoModelForCausalLM.from_pretrained(TOY, dtype=getattr(torch, dtype))
    tokens = AutoTokenizer.from_pretrained(out)("What is the origin of river?", return_tensors="pt")
    assert (
        tokens.input_ids.tolist()
        == AutoTokenizer.from_pretrained(TOY)("What is the origin of river?", return_tensors="pt").input_ids.tolist()
    )
    with torch.no_grad():
        before = base(**tokens).logits
        apply_delta(base, *load_delta(folder / "delta.safetensors"))
        assert exported.dtype == getattr(torch, dtype)
        assert torch.equal(exported(**tokens).logits, base(**tokens).logits)
        assert not torch.equal(before, base(**tokens).logits)
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        export(folder, out)


def test_the_command_and_its_mistakes(short, tmp_path):
    nothing = tmp_path / "nothing"
    with pytest.raises(SystemExit, match=f"^Error: {nothing} is not a run's folder: it has no run.json.$"):
        main(["export", str(nothing), str(tmp_path / "out")])
    folder = run(short())
    moved = tmp_path / "moved"
    moved.symlink_to(TOY)
    main(["export", str(folder), str(tmp_path / "out"), "--model", str(moved)])
    modes = [(tmp_path / "out" / name).stat().st_mode for name in ("model.safetensors", "config.json")]
    assert modes[0] == modes[1]  # of the umask
