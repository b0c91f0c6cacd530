"""Every family of transformers as a tiny random model: what works, and what does not and why.

python -m tests.models.families    # writes docs/models.md
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoTokenizer,
    PretrainedConfig,
)

from tests.conftest import ROOT
from tests.models.tiny import WAYS, Sizes, shrink
from unlearn.arguments import SPAN
from unlearn.data.batches import batches
from unlearn.data.corpora import Topic
from unlearn.errors import UserError
from unlearn.evaluation.scorer import Scorer
from unlearn.methods.misdirection_loss import Misdirection
from unlearn.methods.noise import Augmentation
from unlearn.methods.rmu import RMU
from unlearn.methods.rna import RNA
from unlearn.models.architectures import auto_class, decoder_layers, layer_count
from unlearn.models.cutting import CutModel
from unlearn.models.delta import apply_delta
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_up_to, load_whole
from unlearn.training.cost import Shape
from unlearn.training.loop import train_variants
from unlearn.training.variant import Variant, make_variant

PAGE = ROOT / "docs" / "models.md"
LAYER = 3
TRIED_LAYERS = (LAYER, LAYER - 1)  # the second only where the first does not work
NO_MLP = "a layer without an MLP"
LARGEST = 150_000_000  # parameters
IDS_BT = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 10, 11, 12]])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a family: `verdict` is a key of VERDICTS."""

    family: str
    verdict: str
    trained: tuple[str, ...] = ()  # names inside a decoder layer
    reason: str = ""
    retry: bool = dataclasses.field(default=False, compare=False)  # whether other sizes may help


@cache
def families() -> dict[str, type[PretrainedConfig]]:
    """Model type -> configuration class, of all that transformers can build as causal or image-and-text models."""
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING.keys(), *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.keys()}
    return {t: c for t, c in sorted(CONFIG_MAPPING.items()) if c in known and c.model_type == t}


def outcome(family: str) -> Outcome:
    """Build a family's tiny model and try everything with it; where that fails, one with other sizes."""
    found = [attempt(family, WAYS[0])]
    while found[-1].retry and len(found) < len(WAYS):
        found.append(attempt(family, WAYS[len(found)]))
    return found[-1]


def attempt(family: str, sizes: Sizes) -> Outcome:
    """The outcome with a tiny model of some sizes."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            source = build(families()[family], Path(folder), sizes)
        except UserError as error:
            return Outcome(family, "cannot", reason=_short(error))
        except Exception as error:  # each class has its own rules for its sizes
            return Outcome(family, "untried", reason=f"cannot be built tiny ({_short(error)})", retry=True)
        try:
            whole = load_whole(source)
            assert_logits(whole)
        except UserError as error:
            return Outcome(family, "cannot", reason=_short(error))
        except Exception as error:
            return Outcome(family, "cannot", reason=f"gives no logits of text alone ({_short(error)})", retry=True)
        problems: list[Exception] = []
        for layer in TRIED_LAYERS:
            try:
                names = tried(source, whole if layer == LAYER else load_whole(source), layer, None)
                return Outcome(family, "works", names, "".join(f"not at layer {LAYER}: {_short(p)}" for p in problems))
            except Exception as error:
                problems.append(error)
        if "no MLP down projection" not in str(problems[0]):
            return Outcome(family, "cannot", reason=_short(problems[0]), retry=not isinstance(problems[0], UserError))
        try:
            names = tried(source, load_whole(source), LAYER, last_projections(source))
        except Exception as error:
            return Outcome(family, "cannot", reason=f"{NO_MLP}; {_short(error)}", retry=True)
        return Outcome(family, "needs", names, NO_MLP)


def build(config_class: type[PretrainedConfig], folder: Path, sizes: Sizes = WAYS[0]) -> Source:
    """A checkpoint of a family's tiny random model, in several shards."""
    torch.manual_seed(0)
    layer_count(config_class())  # a decoder alone?
    config = shrink(config_class(), sizes)
    with torch.device("meta"):
        size = auto_class(config).from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters are left")
    model = auto_class(config).from_config(config)
    model.save_pretrained(folder, max_shard_size="1MB")
    return Source(str(folder), device="cpu", dtype="float32")


def last_projections(source: Source) -> list[str]:
    """The last matrix of each trained layer that writes states of the hidden size."""
    model = load_whole(source)
    hidden = model.config.get_text_config().hidden_size
    layers = decoder_layers(model)[LAYER - SPAN + 1 : LAYER + 1]
    written = [[n for n, p in layer.named_parameters() if p.ndim == 2 and p.shape[0] == hidden] for layer in layers]
    return sorted({names[-1] for names in written})


def tried(
    source: Source, whole: transformers.PreTrainedModel, layer: int, parameters: list[str] | None
) -> tuple[str, ...]:
    """Cut, train a step, put the result into the whole model; return what was trained. Asserts what must hold."""
    cut = CutModel(load_up_to(source, layer), layer, parameters=parameters)
    with torch.no_grad():
        assert torch.equal(cut.span(cut.prefix(IDS_BT), cut.frozen), states(whole, layer)), (
            "other states than the whole model"
        )
    CutModel(whole, layer, parameters=parameters)  # checks that what follows gives the whole model's logits
    Shape.of(whole.config, layer, parameters)
    assert_answers(whole)
    original = {name: p.clone() for name, p in cut.model.named_parameters()}
    variant = one_step(cut)
    assert all(torch.equal(p, original[name]) for name, p in cut.model.named_parameters()), "another matrix moved"
    before = {name: p.clone() for name, p in whole.named_parameters()}
    apply_delta(whole, variant.weights)
    changed = {name for name, p in whole.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(variant.weights), f"{changed ^ set(variant.weights)} unchanged or unexpected"
    return tuple(sorted({re.split(r"\.\d+\.", name, maxsplit=1)[1] for name in changed}))


@torch.no_grad()
def assert_logits(model: transformers.PreTrainedModel) -> None:
    """It gives logits of text, asked as the evaluation asks it."""
    logits_BTV = model(input_ids=IDS_BT, use_cache=False).logits
    assert logits_BTV.shape[:2] == IDS_BT.shape, f"logits of shape {tuple(logits_BTV.shape)}"


@torch.no_grad()
def states(model: transformers.PreTrainedModel, layer: int) -> torch.Tensor:
    """The states [B, T, D] at layer l of the whole model."""
    seen: list[Any] = []
    hook = decoder_layers(model)[layer].register_forward_hook(lambda _module, _args, output: seen.append(output))
    model(input_ids=IDS_BT, use_cache=False)
    hook.remove()
    return seen[0][0] if isinstance(seen[0], (tuple, list)) else seen[0]


def assert_answers(model: transformers.PreTrainedModel) -> None:
    """The evaluation's log-likelihoods are those that the model gives to a text alone."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "unlearn" / "toy" / "model")
    context, continuation = "the river of the soil of", " the harbour"
    [(found, _)] = Scorer(ModelGroup(model), tokenizer, 100).loglikelihood(
        [Instance("loglikelihood", {}, (context, continuation), 0)]
    )
    ids_1T = tokenizer(context + continuation, return_tensors="pt")["input_ids"]
    logprobs_TV = model(input_ids=ids_1T, use_cache=False).logits[0].log_softmax(-1)
    start = len(tokenizer(context)["input_ids"])
    expected = sum(logprobs_TV[i - 1, ids_1T[0, i]].item() for i in range(start, ids_1T.shape[1]))
    assert abs(found - expected) < 1e-3 * abs(expected), f"the evaluation answers {found}, the model {expected}"


def one_step(cut: CutModel, lr: float = 1e-2) -> Variant:
    """A step of RMU with RNA."""
    method = RMU(5.0)
    controls = {"bio": method.control_vector(cut.dim, torch.Generator().manual_seed(0))}
    objective = Misdirection(method, controls, 10.0, "padding", Augmentation(RNA(0.1), 0))
    variant = make_variant(objective, cut.frozen, lr)
    topic = Topic("bio", [[3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13]], [[14, 15, 16, 17], [18, 19]], {})
    stream = batches([topic], steps=1, batch_size=2, pad_id=1, side="right")
    train_variants(cut, [variant], stream, mask_padding=False)
    return variant


def page(outcomes: Sequence[Outcome]) -> str:
    """docs/models.md."""
    lines = [
        introduction(Counter(o.verdict for o in outcomes)),
        "| family (`model_type`) | verdict | trained by default, or why not |",
        "|---|---|---|",
        *(row(o) for o in outcomes),
    ]
    return "\n".join(lines) + "\n"


def introduction(counts: Mapping[str, int]) -> str:
    """The text above the table, of {verdict: number of families}."""
    version, total = transformers.__version__, sum(counts.values())
    return INTRODUCTION.format(version=version, layer=LAYER, total=total, **counts)


def row(outcome: Outcome) -> str:
    """A line of the table."""
    trained = ", ".join(f"`{name}`" for name in outcome.trained)
    said = f"{outcome.reason}; tried with" if outcome.verdict == "needs" else ""
    after = f"({outcome.reason})" if outcome.verdict == "works" and outcome.reason else ""
    text = " ".join(part for part in (said, trained, after) if part) or outcome.reason
    return f"| {outcome.family} | {VERDICTS[outcome.verdict]} | {text} |"


VERDICTS = {"works": "works", "needs": "needs `model.parameters`", "cannot": "cannot", "untried": "not tried"}
INTRODUCTION = """\
# Models

Every family that transformers {version} can build as a causal or an image-and-text model, tried as a tiny random model
at layer {layer}. Of {total}, {works} work, {needs} need `model.parameters`, {cannot} cannot be trained, and
{untried} could not be tried. Written by `python -m tests.models.families`, checked by `make test-all`.

*Works*: the model loads up to layer l, without head and vision tower. The states of the cut model at layer l equal
those of the whole model to the bit, and the layers above give its logits. One step of RMU with RNA changes exactly the
trained matrices. The evaluation gives the whole model's log-likelihoods. *Needs `model.parameters`*: the same, if that
key names the matrices to train. *Not tried*: mostly, no model can be made from the default configuration.

A multimodal checkpoint is trained and evaluated with text only; `unlearn export` keeps its other parts as they are. If
the layers of a model differ, a run says at its start whether those from l-2 to l can be trained.
"""


def main() -> None:
    """Write docs/models.md."""
    outcomes = []
    for family in families():
        outcomes.append(outcome(family))
        print(row(outcomes[-1]), flush=True)
    PAGE.write_text(page(outcomes))


def _short(error: Exception) -> str:
    text = re.sub(r"^model\.path=\S+: ", "", " ".join(str(error).split()))
    text = f"{type(error).__name__}: {text}" if " " not in text else text
    return (text if len(text) <= 160 else f"{text[:157]}...").replace("|", "\\|")


if __name__ == "__main__":
    main()
