"""What training needs for models of several sizes, from their configurations alone: `python -m bench.scaling`.

Prints the table of `docs/scaling.md`.
"""

from __future__ import annotations

from transformers import LlamaConfig, MistralConfig, MixtralConfig, PretrainedConfig

from bench.flops import published_step, training_step
from bench.shapes import LAYER, NUS, zephyr
from unlearn.training.cost import Memory, Shape, training_memory

BATCH, LENGTH = 4, 512
RATE = 75e12  # FLOP/s: half of an A40's peak in bfloat16
MODELS: dict[str, PretrainedConfig] = {
    "Zephyr-7B": zephyr(),
    "Llama-2-13B": LlamaConfig(
        hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, vocab_size=32000
    ),
    "Llama-3-70B": LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "Mixtral-8x22B": MixtralConfig(
        hidden_size=6144,
        intermediate_size=16384,
        num_hidden_layers=56,
        num_attention_heads=48,
        num_key_value_heads=8,
        vocab_size=32768,
    ),
    "Mistral-Large-123B": MistralConfig(
        hidden_size=12288,
        intermediate_size=28672,
        num_hidden_layers=88,
        num_attention_heads=96,
        num_key_value_heads=8,
        vocab_size=32768,
    ),
}


def row(name: str, shape: Shape, precision: str) -> str:
    """One line of the table."""
    tokens = BATCH * LENGTH
    parts = {"forget": (tokens, LENGTH), "retain": (tokens, LENGTH)}
    memory: Memory = training_memory(shape, 2 * tokens, weight_bytes=2, precision=precision)
    gigabytes = [memory.weights, memory.working, memory.variant, memory.total(1), memory.total(len(NUS))]
    one, many = (training_step(shape, parts, n, frozen_forget=False) for n in (1, len(NUS)))
    published = published_step(shape, parts, frozen_forget=False)
    whole = 2 * 2 * (shape.embeddings + shape.head + shape.layers * shape.layer_parameters)
    cells = [
        name,
        precision,
        *(f"{b / 1e9:.1f}" for b in gigabytes),
        f"{one / RATE:.2f}",
        f"{many / RATE / len(NUS):.2f}",
        f"{whole / 1e9:.0f}",
        f"{published / RATE:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    head = ["model", "precision", "weights", "working", "a variant", "1 variant", "14 variants"]
    head += ["s a step", "s a step and point, 14", "published: weights", "published: s a step"]
    print("| " + " | ".join(head) + " |")
    print("|---|---|" + "--:|" * (len(head) - 2))
    for name, config in MODELS.items():
        shape = Shape.of(config, LAYER)
        for precision in ("master", "model"):
            print(row(name, shape, precision))


if __name__ == "__main__":
    main()
