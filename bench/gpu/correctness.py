"""What must hold on a GPU as on a CPU: losses, choices, golden trajectories, cuts, packing, trees, resumed training."""

from __future__ import annotations

import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench import shapes
from bench.gpu.results import Results
from bench.gpu.toy import STEPS, TOY, killed_training, toy_cut, toy_train, toy_variant
from unlearn.models.cutting import CutModel
from unlearn.models.delta import apply_delta
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.training.checkpoint import load_checkpoint
from unlearn.training.loop import Record

LLAMA = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100, "pad_token_id": 1,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "Mistral": LLAMA | {"sliding_window": 512},
    "Llama": LLAMA,
    "Qwen3": LLAMA,
    "Gemma3Text": LLAMA | {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention"] * 3},
    "Mixtral": LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2},
}


def measure(results: Results, device: torch.device, steps: int) -> None:
    """Section a."""
    torch.backends.cuda.matmul.allow_tf32 = False
    results.attempt("a", f"toy model, {steps} steps, float32, against the CPU", lambda: _toy(device, steps))
    results.attempt("a", "golden trajectories", lambda: _golden(device))
    results.attempt("a", "killed and resumed training is the same to the bit", lambda: _resumed(device))
    for name in FAMILIES:
        for dtype in (torch.float32, torch.bfloat16):
            results.attempt("a", f"{name}, {dtype}".replace("torch.", ""), partial(_family, name, dtype, device))


def _toy(device: torch.device, steps: int) -> dict[str, Any]:
    """Losses on both devices, and in the device's usual dtype; choices of the unlearned models where lm-eval is."""
    runs = {}
    for place, dtype in (("cpu", "float32"), (device.type, "float32"), (device.type, "bfloat16")):
        cut = toy_cut(place, dtype)
        variant = toy_variant(cut)
        runs[place, dtype] = (toy_train(cut, variant, steps), variant.weights)
    cpu, gpu, half = (runs[key] for key in (("cpu", "float32"), (device.type, "float32"), (device.type, "bfloat16")))
    found: dict[str, Any] = {"float32": _deviation(gpu[0], cpu[0]), "bfloat16": _deviation(half[0], cpu[0])}
    if find_spec("lm_eval") is None:
        found["choices"] = "not measured: lm_eval is not installed"
        equal = True
    else:
        choices = [_choices(place, weights) for place, (_, weights) in (("cpu", cpu), (device.type, gpu))]
        equal = choices[0] == choices[1]
        found |= {"questions": len(choices[0]), "choices_equal": equal}
    return found | {"passed": found["float32"] <= 1e-4 and equal}


def _deviation(ours: list[Record], reference: list[Record]) -> float:
    """The largest relative difference of a loss over all steps."""
    pairs = [(a.loss, b.loss) for a, b in zip(ours, reference, strict=True)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def _choices(device: str, weights: dict[str, torch.Tensor]) -> list[int]:
    from unlearn.evaluation.scorer import Scorer
    from unlearn.evaluation.suite import load_suite

    source = Source(str(TOY / "model"), device=device, dtype="float32")
    model = load_whole(source)
    apply_delta(model, {name: w.detach() for name, w in weights.items()})
    roles = {"retain": ["toy_retain"], "forget": ["toy_forget_bio", "toy_forget_cyber"]}
    tokens = (TOY / "data/forget_tokens.txt").read_text().split("\n")[:10]
    suite = load_suite(roles, {"default": [], "perturbed": tokens}, include_path=str(TOY / "tasks"), limit=100)
    scorer = Scorer(ModelGroup(model), load_tokenizer(source), 8192)
    answers = scorer.loglikelihood([request for query in suite.tasks for request in suite.instances(query)])
    fours = [[value for value, _ in answers[i : i + 4]] for i in range(0, len(answers), 4)]
    return [four.index(max(four)) for four in fours]


def _golden(device: torch.device) -> dict[str, Any]:
    """All trajectories of the published loops on the device."""
    from tests.training.test_golden import OWN, replays, short  # with it comes pytest, which may be missing

    losses = matrices = 0.0
    replayed = replays(OWN, device.type).values()
    for got in replayed:
        alpha = got.golden["alpha"]
        for record, step in zip(got.variant.records, got.expected["log"], strict=True):
            pairs = ((record.forget_loss, step["forget_loss"]), (alpha * record.retain_loss, step["retain_loss"]))
            losses = max(losses, *(abs(a - b) / max(abs(b), 1e-2) for a, b in pairs))
        for key, w in got.variant.weights.items():
            stored = got.stored[short(key, got.stored)]
            matrices = max(matrices, (w.detach().cpu() - stored).abs().max().item())
    passed = losses <= 1e-4 and matrices <= 1e-4
    return {"trajectories": len(replayed), "losses": losses, "matrices": matrices, "passed": passed}


def _resumed(device: torch.device) -> dict[str, Any]:
    """Six steps at once; and six of which a killed process made the first, from its checkpoint on."""
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    cut = toy_cut(device.type, dtype)
    whole, resumed = toy_variant(cut), toy_variant(cut)
    toy_train(cut, whole, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.safetensors"
        status = killed_training(file, device.type, dtype)
        load_checkpoint(file, resumed)
    begun = resumed.progress.steps
    toy_train(cut, resumed, STEPS)
    equal = all(torch.equal(w, resumed.weights[name]) for name, w in whole.weights.items())
    return {"exit_status": status, "resumed_after": begun, "passed": equal and begun == STEPS // 2}


def _tiny(name: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(bos_token_id=0, eos_token_id=1, **FAMILIES[name])
    return AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval().requires_grad_(False)


def _family(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Whether the cut is exact (CutModel checks it), and which ways of sharing a row work."""
    model = _tiny(name, dtype, device)
    cut = CutModel(model, 3)
    group = ModelGroup(model, [shapes.random_delta(model, 3, seed) for seed in range(2)])
    found: dict[str, Any] = {"cut": "exact", "packs": cut.packs, "evaluated_together": group.shares}
    if find_spec("lm_eval") is not None:
        from unlearn.evaluation.scorer import Scorer

        found["trees"] = Scorer(ModelGroup(model), load_tokenizer(Source(str(TOY / "model"))), 512).shares_prefixes
    return found
