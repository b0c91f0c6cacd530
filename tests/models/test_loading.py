"""Loading: its peak of memory up to layer l, measured in a process of its own, and checkpoints of other forms."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MistralConfig

from tests.conftest import ROOT
from unlearn.errors import UserError
from unlearn.models.loading import Source, check_weights, load_up_to, load_whole

LOAD = """
import json, sys
from pathlib import Path
from unlearn.models.loading import Source, load_up_to

def resident(kind):
    [line] = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(kind)]
    return int(line.split()[1]) * 1024

before = resident("VmRSS:")
model = load_up_to(Source(sys.argv[1], device="cpu", dtype="float32"), 7)
peak = resident("VmHWM:") - before
print(json.dumps({"peak": peak, "kept": sum(p.numel() * p.element_size() for p in model.parameters())}))
"""


def test_peak_memory_while_loading_is_little_more_than_what_is_kept(tmp_path):
    config = MistralConfig(
        num_hidden_layers=16, hidden_size=512, intermediate_size=1792, num_attention_heads=8, vocab_size=32000
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path, max_shard_size="32MB")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout)
    assert measured["kept"] > 180e6  # large against what the libraries load on the way
    assert measured["peak"] < 1.2 * measured["kept"]


@pytest.fixture
def checkpoint(tmp_path, tiny_llama):
    tiny_llama.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("lacking", ["lm_head.weight", "model.norm.weight"])
def test_what_comes_behind_the_layers_is_not_drawn_at_random_either(lacking, checkpoint):
    file = checkpoint / "model.safetensors"
    save_file({n: w for n, w in load_file(file).items() if n != lacking}, file, {"format": "pt"})
    source = Source(str(checkpoint), device="cpu")
    with pytest.raises(UserError, match=f"lacks {lacking}"):
        load_whole(source)
    if lacking == "lm_head.weight":
        load_up_to(source, 3)  # which has no head


def test_a_tied_head_is_not_lacking(tmp_path, tiny_llama):
    tiny_llama.config.tie_word_embeddings = True
    tied = type(tiny_llama)(tiny_llama.config)
    tied.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    whole = load_whole(Source(str(tmp_path), device="cpu"))
    assert torch.equal(whole.lm_head.weight, tied.model.embed_tokens.weight)


def test_pickled_shards_are_loaded(checkpoint, tiny_llama):
    """As checkpoints from before safetensors have them; transformers unpickles tensors and nothing else."""
    file = checkpoint / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    names = sorted(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for part, of in parts.items():
        torch.save({name: weights[name] for name in of}, checkpoint / part)
    where = {name: part for part, of in parts.items() for name in of}
    (checkpoint / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    source = Source(str(checkpoint), device="cpu")
    check_weights(source, 3)
    assert torch.equal(load_whole(source).lm_head.weight, tiny_llama.lm_head.weight)
    cut = load_up_to(source, 3)
    assert torch.equal(cut.layers[3].mlp.down_proj.weight, tiny_llama.model.layers[3].mlp.down_proj.weight)
    (checkpoint / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match="weight files are missing"):
        check_weights(source, 3)
