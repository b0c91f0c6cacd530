"""What a training imports. It is measured by what is there afterwards, not by time."""

import subprocess
import sys

from tests.conftest import ROOT

NOT_TRAINING = ("lm_eval", "datasets", "wandb", "sklearn", "peft", "altair")

SCRIPT = f"""
import sys
from unlearn.cli.launch import launch

sys.argv = ["launch.py", *sys.argv[1:]]
launch()
print("imported:", [name for name in {NOT_TRAINING!r} if name in sys.modules])
"""


def test_a_training_imports_nothing_of_evaluation_tracking_and_reports(tmp_path):
    short = ("train.steps=1", "eval=none", "tracker=none", f"output_root={tmp_path}")
    done = subprocess.run([sys.executable, "-c", SCRIPT, *short], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("imported: []\n")
