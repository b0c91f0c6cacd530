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

from unlearn.toy import world as w

DRILL = 25
ODD_OPTION = 0.3  # share of training questions in which one wrong option is an unrelated word


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
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return MistralForCausalLM(config)


def _batches(
    world: w.World, tokenizer: PreTrainedTokenizerFast, rng: random.Random, passages: int, questions: int
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """Endless (passages [B, T] padded, [closed-book, open-book] questions [B, T] ending in their letter)."""
    facts = list(world.facts)
    subjects = [[f for f in facts if f.subject is s] for s in world.subjects]
    weights = [len(s) for s in subjects]
    odd = world.invented_words()

    def ask(fact: w.Fact) -> str:
        question = w.multiple_choice(fact, rng)
        if rng.random() < ODD_OPTION:
            wrong = rng.choice([i for i in range(4) if i != question["answer"]])
            question["choices"][wrong] = rng.choice(odd)
        return f"{w.prompt(question)} {w.LETTERS[question['answer']]}"

    while True:
        texts = [w.passage(s, rng, 9) for s in rng.choices(subjects, weights, k=passages)]
        texts_BT = tokenizer(texts, truncation=True, max_length=98, padding=True, return_tensors="pt").input_ids
        closed = [ask(f) for f in rng.sample(facts, questions)]
        # With the fact in front, "find the option and name its letter" is learned on its own, and first.
        opened = [f"{f.fill(w.STATEMENTS[0])} {ask(f)}" for f in rng.sample(facts, questions // 2)]
        drills = [_drill(rng, odd) for _ in range(questions)]
        # Within each kind all questions have the same number of words, so nothing is padded.
        yield texts_BT, [tokenizer(q, return_tensors="pt").input_ids for q in (closed, opened, drills)]


def _drill(rng: random.Random, words: list[str]) -> str:
    """Four options, then each option's letter: the circuit behind a multiple-choice answer, on its own."""
    options = rng.sample(words, 4)
    listed = " ".join(f"{letter}. {word}" for letter, word in zip(w.LETTERS, options))
    asked = rng.sample(range(4), 4)
    return listed + " " + " ".join(f"{options[i]} : {w.LETTERS[i]}" for i in asked)


def train(
    world: w.World,
    tokenizer: PreTrainedTokenizerFast,
    model: MistralForCausalLM,
    seed: int,
    steps: int = 3000,
    passages: int = 12,
    questions: int = 24,
    lr: float = 3e-3,
    warmup: int = 200,
) -> None:
    """AdamW with warm-up and cosine decay; the answer letter's loss is a term of its own."""
    rng = random.Random(f"pretrain-{seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warmup),
        ],
        [warmup],
    )
    batches = _batches(world, tokenizer, rng, passages, questions)
    model.train()
    for step in track(range(steps), description="training the embedded model"):
        texts_BT, asked = next(batches)
        labels_BT = texts_BT.masked_fill(texts_BT == tokenizer.pad_token_id, -100)
        loss = statement_loss = model(input_ids=texts_BT, labels=labels_BT).loss
        # In one mean over all labelled tokens the letters would drown: they get losses of their own.
        for questions_BT in asked:
            answers = 4 if len(questions_BT[0]) == DRILL else 1
            at = -1 - 3 * torch.arange(answers)
            logits_BTV = model(input_ids=questions_BT).logits[:, at - 1]
            letter_loss = F.cross_entropy(logits_BTV.flatten(0, 1), questions_BT[:, at].flatten())
            loss = loss + letter_loss
            if step % 100 == 0: print(step, statement_loss.item(), letter_loss.item(), flush=True)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


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
