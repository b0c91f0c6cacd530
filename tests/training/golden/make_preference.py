"""Write trajectories of NPO, SimNPO and DPO as the extended paper's code trains them, with nothing of this project.

    python tests/training/golden/make_preference.py

It writes the folder `preference` beside itself: a tiny random Mistral with its tokenizer, the texts, and for each run
its losses (`golden.json`) and its three matrices after the last step (`matrices.safetensors`). Two whole models, a
hook and autograd over everything; float32 on a CPU, eager attention. `tests/training/test_golden_preference.py`
replays what is stored.

With u the updated model, r the frozen reference, x_f forget, x_r retain and x_i preferred ("I don't know") texts, and
L(x) a model's usual loss, the mean over all predicted tokens of the batch:

    NPO     -(2 / beta) log sigmoid(beta (L_u(x_f) - L_r(x_f)))
    SimNPO  -(2 / beta) log sigmoid(beta L_u(x_f) - gamma)
    DPO     -(2 / beta) log sigmoid(beta ((L_u(x_f) - L_u(x_i)) - (L_r(x_f) - L_u(x_i))))
    KL      KL(p_r || p_u) of the next-token distributions on x_r, mean over tokens
    MSE     squared difference of the two log-softmaxes on x_r, mean over tokens and vocabulary
    loss    forget + alpha * retain, alpha by topic

RNA adds nu * randn to the output of the reference's layer l at all positions, on x_r only.

The published code's faults are kept. Padding (the end-of-text token, on the left) counts as text in every loss. The
reference gets no attention mask and sees padding. L is one number for the whole batch. DPO's second ratio takes the
updated model's L(x_i), which cancels. x_i are always the first texts of their file. AdamW adds eps before the bias
correction. The code also rounds KL and MSE to bfloat16, which has no counterpart in float32.

B batch, T tokens, D hidden size, V vocabulary.
"""

import copy
import json
import math
import random
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import logsigmoid

FOLDER = Path(__file__).parent / "preference"
LAYER = 7
TRAINED = [f"model.layers.{i}.mlp.down_proj.weight" for i in (LAYER - 2, LAYER - 1, LAYER)]
STEPS, BATCH_SIZE = 8, 4
MAX_LENGTH = {"bio": 12, "cyber": 18}  # of forget and of retain texts; 512 and 768 in the published code
LR, BETAS, EPS = 5e-3, (0.9, 0.999), 1e-6  # the published rate is too low for so few steps
BETA, GAMMA, NU = 0.1, 0.0, 0.3
ALPHA = {  # as published
    ("npo", "kl"): {"bio": 50, "cyber": 50},
    ("npo", "mse"): {"bio": 5, "cyber": 20},
    ("simnpo", "kl"): {"bio": 20, "cyber": 50},
    ("simnpo", "mse"): {"bio": 10, "cyber": 5},
    ("dpo", "kl"): {"bio": 30, "cyber": 50},
    ("dpo", "mse"): {"bio": 5, "cyber": 20},
}
VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}
VOCABULARY = ["<unk>", "<s>", "</s>", *(f"w{i:02}" for i in range(3, 64))]


def make_model():
    """A random model and its tokenizer; saved, and read back as a user would."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=10,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        initializer_range=0.3,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.MistralForCausalLM(config).save_pretrained(FOLDER / "model")
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(FOLDER / "model")

    model = transformers.AutoModelForCausalLM.from_pretrained(
        FOLDER / "model", dtype=torch.float32, attn_implementation="eager"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER / "model", padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def make_texts():
    """Documents of random words, some of them longer than what is read of them; the topics share the retain texts."""
    draw = random.Random(0)
    documents = STEPS // 2 * BATCH_SIZE

    def corpus(count, longest):
        return [" ".join(draw.choices(VOCABULARY[3:], k=draw.randint(2, longest))) for _ in range(count)]

    texts = {name: corpus(documents, 24) for name in ("forget-bio", "forget-cyber", "retain")}
    for name, rows in texts.items():
        (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    texts["preferred"] = corpus(2 * BATCH_SIZE, 6)
    (FOLDER / "preferred.txt").write_text("\n".join(texts["preferred"]) + "\n")
    return texts


def loss_of(model, batch, masked=True):
    """L: the mean over all predicted tokens of the batch, padding included."""
    mask_BT = batch["attention_mask"] if masked else None
    return model(input_ids=batch["input_ids"], attention_mask=mask_BT, labels=batch["input_ids"]).loss


def log_probabilities(model, batch, masked=True):
    """Logarithms of the next-token distributions at all positions: [B, T, V]."""
    mask_BT = batch["attention_mask"] if masked else None
    return model(input_ids=batch["input_ids"], attention_mask=mask_BT).logits.log_softmax(dim=-1)


@torch.no_grad()
def noised_log_probabilities(reference, batch, nu, step):
    """Those of the reference, with noise on the output of layer l."""
    generator = torch.Generator().manual_seed(1000 + step)

    def add_noise(_module, _args, output):
        h_BTD = output[0] if isinstance(output, tuple) else output
        h_BTD = h_BTD + nu * torch.randn(h_BTD.shape, generator=generator)
        return (h_BTD, *output[1:]) if isinstance(output, tuple) else h_BTD

    if nu == 0:
        return log_probabilities(reference, batch, masked=False)
    hook = reference.model.layers[LAYER].register_forward_hook(add_noise)
    log_q_BTV = log_probabilities(reference, batch, masked=False)
    hook.remove()
    return log_q_BTV


def forget_loss(method, updated, reference, forget, preferred):
    """The three formulas above."""
    of_forget = loss_of(updated, forget)
    if method == "simnpo":
        return -(2 / BETA) * logsigmoid(BETA * of_forget - GAMMA)
    with torch.no_grad():
        expected = loss_of(reference, forget, masked=False)
    if method == "npo":
        return -(2 / BETA) * logsigmoid(BETA * (of_forget - expected))
    of_preferred = loss_of(updated, preferred)
    ratio, reference_ratio = of_forget - of_preferred, expected - of_preferred
    return -(2 / BETA) * logsigmoid(BETA * (ratio - reference_ratio))


def retain_loss(retain, log_q_BTV, log_p_BTV):
    """KL or MSE; q is the reference's distribution."""
    if retain == "kl":
        return (log_q_BTV.exp() * (log_q_BTV - log_p_BTV)).sum(dim=-1).mean()
    return (log_q_BTV - log_p_BTV).square().mean()


@torch.no_grad()
def adamw(weights, first, second, t):
    """AdamW without weight decay, eps added before the bias correction."""
    b1, b2 = BETAS
    for w, m, v in zip(weights, first, second, strict=True):
        m.mul_(b1).add_(w.grad, alpha=1 - b1)
        v.mul_(b2).addcmul_(w.grad, w.grad, value=1 - b2)
        w.sub_(LR * math.sqrt(1 - b2**t) / (1 - b1**t) * m / (v.sqrt() + EPS))
        w.grad = None


def train(model, tokenizer, texts, method, retain, nu):
    """Train a copy of the model, the topics in turn; returns the log and the trained matrices."""
    reference, updated = copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model).requires_grad_(False)
    weights = [updated.get_parameter(name).requires_grad_(True) for name in TRAINED]
    first, second = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    alpha, log = ALPHA[method, retain], []
    for step in range(STEPS):
        topic = ("bio", "cyber")[step % 2]

        def batch(name, number, length=MAX_LENGTH[topic]):
            rows = texts[name][number * BATCH_SIZE : (number + 1) * BATCH_SIZE]
            return tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=length)

        retained = batch("retain", step // 2)
        forget = forget_loss(method, updated, reference, batch(f"forget-{topic}", step // 2), batch("preferred", 0))
        log_q_BTV = noised_log_probabilities(reference, retained, nu, step)
        kept = retain_loss(retain, log_q_BTV, log_probabilities(updated, retained))
        loss = forget + alpha[topic] * kept
        loss.backward()
        adamw(weights, first, second, step + 1)
        values = {"loss": loss, "forget_loss": forget, "retain_loss": kept}
        log.append({"step": step, "topic": topic} | {name: value.item() for name, value in values.items()})
    return log, [w.detach() for w in weights]


def main():
    """All methods with both retain losses, without and with noise."""
    FOLDER.mkdir(exist_ok=True)
    (model, tokenizer), texts = make_model(), make_texts()
    runs, matrices = {}, {}
    for method, retain in ALPHA:
        for nu in (0.0, NU):
            name = f"{method}_{retain}{'_rna' if nu else ''}"
            log, weights = train(model, tokenizer, texts, method, retain, nu)
            runs[name] = {"method": method, "retain": retain, "nu": nu, "alpha": ALPHA[method, retain], "log": log}
            matrices |= {f"{name}.{key}": w for key, w in zip(TRAINED, weights, strict=True)}
    golden = {
        "versions": VERSIONS,
        "dtype": "float32",
        "attention": "eager",
        "layer": LAYER,
        "layers": model.config.num_hidden_layers,
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "max_length": MAX_LENGTH,
        "optimizer": {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": 0.0},
        "beta": BETA,
        "gamma": GAMMA,
        "noise": "torch.randn of the padded shape [B, T, D], from a CPU generator with seed 1000 + step",
        "runs": runs,
    }
    (FOLDER / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    # One entry: safetensors keeps several in an order that is not fixed.
    save_file(matrices, FOLDER / "matrices.safetensors", metadata={"versions": json.dumps(VERSIONS)})


if __name__ == "__main__":
    main()
