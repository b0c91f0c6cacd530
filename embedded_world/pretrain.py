"""Train the embedded model from scratch on the embedded world, then rescale it to Zephyr's norms.

B sequences, T tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from rich.progress import track
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from embedded_world import world as w

PASSAGES, CLOSED, OPEN = 8, 32, 16  # a step's texts, questions, and questions with the fact in front
ODD_OPTION = 0.3  # share of training questions in which one wrong option is an unrelated word
LEARNING_RATE = 3e-3


def build_tokenizer(world: w.World) -> PreTrainedTokenizerFast:
    """One token a word, `<s>` in front; unknown words become `<unk>`."""
    texts = [f.fill(t) for f in world.facts for t in w.STATEMENTS]
    texts += [w.prompt(w.multiple_choice(f, random.Random(0))) for f in world.facts]
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    words: dict[str, int] = {}
    for word in ["<s>", "</s>", "<unk>", *w.LETTERS]:
        words.setdefault(word, len(words))
    for text in texts:
        for word, _ in split.pre_tokenize_str(text):
            words.setdefault(word, len(words))
    for word in world.invented_words():
        words.setdefault(word, len(words))
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        padding_side="left",
        model_max_length=512,
    )


def build_model(vocabulary: int, seed: int, layers: int = 8, hidden: int = 96) -> MistralForCausalLM:
    """A randomly initialised model in Mistral's layout, Zephyr's in small."""
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        sliding_window=None,
        rms_norm_eps=1e-5,
        initializer_range=0.1,  # about 1 / sqrt(hidden), where the usual 0.02 is made for thousands of dimensions
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return MistralForCausalLM(config)


def train(world: w.World, tokenizer: PreTrainedTokenizerFast, model: MistralForCausalLM, seed: int, steps: int) -> None:
    """Learn statements and questions; each kind has a loss of its own, or the answer letters would drown.

    Muon on the layers' matrices and AdamW on the rest: with AdamW alone the attention that leads from an option to
    its letter did not form within the first 2,000 steps, with Muon it does after 600.
    """
    rng = random.Random(f"pretrain-{seed}")
    optimizers = _optimizers(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _learning_rate(step, steps)) for o in optimizers]
    batches = _batches(world, tokenizer, rng)
    model.train()
    for _ in track(range(steps), description="training the embedded model"):
        texts_BT, questions = next(batches)
        loss = model(input_ids=texts_BT, labels=texts_BT.masked_fill(texts_BT == tokenizer.pad_token_id, -100)).loss
        for questions_BT in questions:
            logits_BV = model(input_ids=questions_BT[:, :-1], logits_to_keep=1).logits[:, -1]
            loss = loss + F.cross_entropy(logits_BV, questions_BT[:, -1])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    model.eval()


def _optimizers(model: MistralForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _learning_rate(step: int, steps: int) -> float:
    """As a share of the full rate: 100 steps up, then level, down to a fiftieth over the last 40 %."""
    return min((step + 1) / 100, 1.0, max(0.02, (steps - step) / (0.4 * steps)))


def _batches(
    world: w.World, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Endless (passages [B, T] padded, [closed-book, open-book] questions [B, T] that end in their letter)."""
    facts = list(world.facts)
    subjects = [[f for f in facts if f.subject is s] for s in world.subjects]
    weights = [len(s) for s in subjects]
    words = world.invented_words()

    def ask(fact: w.Fact) -> str:
        question = w.multiple_choice(fact, rng)
        if rng.random() < ODD_OPTION:
            w.put_odd_option(question, words, rng)
        return f"{w.prompt(question)} {w.LETTERS[question['answer']]}"

    while True:
        texts = [w.passage(s, rng, 9) for s in rng.choices(subjects, weights, k=PASSAGES)]
        texts_BT = tokenizer(texts, truncation=True, max_length=98, padding=True, return_tensors="pt").input_ids
        closed = [ask(f) for f in rng.sample(facts, CLOSED)]
        # With the fact in front, "find the option and name its letter" is learned on its own.
        opened = [f"{f.fill(w.STATEMENTS[0])} {ask(f)}" for f in rng.sample(facts, OPEN)]
        # Within each kind all questions have the same number of words, so nothing is padded.
        yield texts_BT, [tokenizer(q, return_tensors="pt").input_ids for q in (closed, opened)]


@torch.no_grad()
def accuracy(
    model: MistralForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: list[dict], batch: int = 96
) -> float:
    """Share of questions whose most likely letter is the right one."""
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(w.LETTERS)))
    right = 0
    for i in range(0, len(questions), batch):
        part = questions[i : i + batch]
        ids_BT = tokenizer([w.prompt(q) for q in part], return_tensors="pt").input_ids
        logits_BV = model(input_ids=ids_BT, logits_to_keep=1).logits[:, -1]
        answers_B = torch.tensor([q["answer"] for q in part])
        right += int((logits_BV[:, letters].argmax(-1) == answers_B).sum())
    return right / len(questions)


@torch.no_grad()
def rescale(model: MistralForCausalLM, scale: float) -> None:
    """Multiply the residual stream by `scale` without changing the logits.

    The stream is the sum of embeddings, `o_proj` and `down_proj` outputs, and is only read through RMSNorm,
    which is scale-free once its eps is multiplied by scale^2.
    """
    model.model.embed_tokens.weight.mul_(scale)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(scale)
        layer.mlp.down_proj.weight.mul_(scale)
    model.config.rms_norm_eps *= scale**2
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = model.config.rms_norm_eps


@torch.no_grad()
def rescale_to_spread(
    world: w.World,
    tokenizer: PreTrainedTokenizerFast,
    model: MistralForCausalLM,
    layer: int = 5,
    spread: float = 0.05,
) -> None:
    """Rescale so that the standard deviation of a coordinate of h at `layer` is Zephyr's at layer 7."""
    rng = random.Random(0)
    texts = [w.passage(world.facts_of("retain"), rng, 8) for _ in range(32)]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    h_BTD = model(**batch, output_hidden_states=True).hidden_states[layer + 1]
    real_ND = h_BTD[batch.attention_mask.bool()]
    rescale(model, spread / real_ND.std(dim=0).mean().item())
