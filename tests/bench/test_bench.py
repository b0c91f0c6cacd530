"""The benchmark's plain baseline computes what our loop computes."""

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from bench import shapes
from bench.baseline import train_plainly
from bench.worker import NU, on_demand, train_ours
from unlearn.data.batches import batches
from unlearn.models.loading import Source


@pytest.mark.parametrize("lengths", [shapes.equal_lengths, shapes.wmdp_lengths])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("method", ["rmu", "npo"])
def test_losses_of_the_baseline_are_those_of_our_loop(tmp_path, lengths, count, method):
    config = MistralConfig(
        num_hidden_layers=9, hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=100,
    )  # fmt: skip
    shapes.write_checkpoint(config, tmp_path)
    topic = lengths(24, 12, 100)

    def stream():
        return batches([topic], steps=3, batch_size=4, pad_id=0, side="right")

    def whole():
        return AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    expected = train_plainly(whole(), whole().requires_grad_(False), stream(), NU, method=method)
    found = train_ours(Source(str(tmp_path), device="cpu"), stream(), count, method)
    for ours, plain in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, rel=1e-5)


def test_steps_are_made_on_demand(monkeypatch, capsys):
    lines = iter(["step\n", "step\n", ""])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines), raising=False)
    monkeypatch.setattr("sys.stdin", type("In", (), {"readline": staticmethod(lambda: next(lines))}))
    assert len(list(on_demand([torch.zeros(1)] * 9, ahead=1))) == 3  # one read ahead
    assert capsys.readouterr().out.count("seconds") == 2
