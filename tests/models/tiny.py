"""Small configurations of any class of transformers, for tiny random models.

A configuration is the class's own default, with every size-like number made small by rules on names. Widths and
numbers of heads shrink by the same factor, so that what a family demands of their ratios stays true.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig

LAYERS, TOWER_LAYERS = 6, 2
VOCABULARY, POSITIONS, WINDOW = 832, 64, 4  # the embedded model's tokenizer has as many tokens
ALIGNED = 8

WIDTH = re.compile(r"hidden|inner|intermediate|emb|d_model|d_ff|dim_ff|ffn|width|rank$|d_ssm|^dim$|projection")
HEADS = re.compile(r"(num|n|attention|^)_?\w*heads$|n_head$")
FIXED = re.compile(r"head_dim|dim_head|d_head|head_size|layers|act|rate|dropout")  # of one head, or no width


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A way to make a configuration small."""

    fill: bool = False  # whether sizes that are None by default get a value
    heads: int = 2  # how many are left at least, if possible
    given: dict[str, Any] = dataclasses.field(default_factory=dict)  # values of those of these fields that exist


# Where the first way fails, the default configuration of the family is often not one that a model can be made of.
HALF_ROTATED = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
WAYS = (
    Sizes(),
    Sizes(fill=True),
    Sizes(fill=True, heads=4, given={"head_dim": 128, "rope_parameters": HALF_ROTATED}),
)


def shrink(
    whole: PretrainedConfig, sizes: Sizes, layers: int = LAYERS, linked: dict[int, int] | None = None
) -> PretrainedConfig:
    """A configuration of the same class with small sizes. Raises whatever the class raises.

    `linked`: what other numbers became, of those that this configuration may have to repeat.
    """
    hidden, heads = _number(whole, "hidden_size"), _number(whole, "num_attention_heads", "num_heads")
    depth = _number(whole, "num_hidden_layers")
    rules = _Rules(hidden, _factor(hidden, heads, sizes.heads), layers, depth, linked or {})
    chosen: dict[str, Any] = {}
    values = {field.name: _value(whole, field.name) for field in dataclasses.fields(whole)}
    if sizes.fill:
        filled = _filled(hidden, heads, layers)
        values = {name: filled.get(name) if value is None else value for name, value in values.items()}
    parts = {name: value for name, value in values.items() if isinstance(value, PretrainedConfig)}
    for name, part in sorted(parts.items(), key=lambda item: not _holds_text(whole, item[1])):  # the text first
        text = _holds_text(whole, part)
        chosen[name] = shrink(part, sizes, layers if text else TOWER_LAYERS, rules.linked)
        if text:
            rules.linked[_number(part, "hidden_size")] = _number(chosen[name], "hidden_size")
    for name, value in values.items():
        if isinstance(value, (int, list)) and not isinstance(value, bool):
            chosen[name] = rules.small(name, value)
        elif value is None and sizes.fill and name.endswith("_map"):
            chosen[name] = {}
    if "head_dim" not in values and chosen.get("num_attention_heads") and chosen.get("hidden_size"):
        chosen["num_attention_heads"] = math.gcd(chosen["num_attention_heads"], chosen["hidden_size"])
    chosen |= {name: copy.deepcopy(value) for name, value in sizes.given.items() if {name, "vocab_size"} & {*values}}
    return type(whole)(**chosen)


def _filled(hidden: int, heads: int, layers: int) -> dict[str, Any]:
    return {
        "head_dim": hidden // max(heads, 1) // 2 * 2,
        "num_key_value_heads": heads,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention"] * layers,
        "mlp_layer_types": ["dense"] * layers,
    }


def _value(config: PretrainedConfig, name: str) -> Any:
    return vars(config).get(name)  # an attribute may be refused: it differs between layers


def _number(config: PretrainedConfig, *names: str) -> int:
    for name in names:
        value = _value(config, config.attribute_map.get(name, name))
        if isinstance(value, int):
            return value
    return 0


def _holds_text(whole: PretrainedConfig, part: PretrainedConfig) -> bool:
    return part is whole.get_text_config() or part.get_text_config() is not part


def _factor(hidden: int, heads: int, left: int) -> int:
    """By how much widths shrink: at least so many heads are left, if possible."""
    if not heads:
        return max(1, hidden // 64)
    common = math.gcd(hidden, heads)
    factors = [k for k in range(2, common + 1) if common % k == 0]
    kept = [k for k in factors if heads // k >= left] or factors or [1]
    return max([k for k in kept if hidden // k % ALIGNED == 0] or kept)


@dataclasses.dataclass
class _Rules:
    """What becomes of a number, by the name of its field."""

    hidden: int
    factor: int  # by which widths shrink
    layers: int
    depth: int  # layers by default
    linked: dict[int, int]
    special: Iterator[int] = dataclasses.field(default_factory=lambda: iter(range(VOCABULARY - 1, 0, -1)))

    def small(self, name: str, value: Any) -> Any:
        if isinstance(value, list):
            return self._list(name, value)
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        if re.search(r"token_(id|index)$|_id$", name):
            known = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
            return known.get(name, value if 0 <= value < VOCABULARY // 2 else next(self.special))
        if value in self.linked:
            return self.linked[value]
        if "vocab" in name:
            return min(value, VOCABULARY)
        if re.search(r"layers?$|^depth$|^n_layer", name):
            return self._layers(name, value)
        if re.search(r"experts$|expert_num$", name):
            return min(value, 4)
        if re.search(r"groups?$", name):
            return 1
        if re.search(r"per_tok|(?<!index_)top_?k|^moe_k$", name):
            return min(value, 2)
        if re.search(r"position|n_ctx|seq_len", name):
            return min(value, POSITIONS)
        if re.search(r"sliding_window|^window_size", name):
            return min(value, WINDOW)
        if FIXED.search(name):
            return value // 2 * 2 if "head_dim" in name else value  # rotary positions come in pairs
        if HEADS.search(name):
            return max(1, value // self.factor)
        if value == self.hidden:  # heads times their size
            return value // self.factor
        if WIDTH.search(name):  # aligned, as kernels for experts need it
            return -(-value // (self.factor * ALIGNED)) * ALIGNED
        return value

    def _layers(self, name: str, value: int) -> int:
        if value == self.depth:
            return self.layers
        return min(value, 1 if "shared" in name else max(1, round(value * self.layers / max(self.depth, 1))))

    def _list(self, name: str, value: list) -> list:
        if len(value) == self.depth > 1:  # one entry for each layer
            return [self.small(name, v) for v in value[: self.layers]]
        if value and isinstance(value[0], list):  # [[kinds of layers, how often], ...]
            return [[v if isinstance(v, list) else self._layers(name, v) for v in entry] for entry in value]
        if name.endswith("token_id"):
            return [2]
        if "layer" in name:  # numbers of layers
            return [min(v, self.layers - 1) if isinstance(v, int) else v for v in value]
        return [self.small(name, v) for v in value]
