"""Loading up to layer l: how much memory it takes at its peak, measured in a process of its own."""

import json
import subprocess
import sys

from transformers import AutoModelForCausalLM, MistralConfig

from tests.conftest import ROOT

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
