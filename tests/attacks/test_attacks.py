"""Attacks bring back what is known to be hidden, and nothing to a model that never knew. Then all is as before."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import ROOT, metrics_of, write_jsonl
from unlearn.attacks.attack import Target, Unlearning
from unlearn.attacks.directions import Directions, mean_states
from unlearn.attacks.make import plan
from unlearn.attacks.matrices import weight_matrices
from unlearn.attacks.optimizers import OF_TORCH, OPTIMIZERS
from unlearn.attacks.projection import Projection
from unlearn.attacks.pruning import Pruning
from unlearn.attacks.relearning import Relearning, adapters, next_token_loss
from unlearn.attacks.run import _possible
from unlearn.data.batches import pad
from unlearn.errors import UserError
from unlearn.evaluation.harness import evaluate
from unlearn.evaluation.suite import Suite
from unlearn.models.architectures import decoder_layers, hidden_of
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole

TOY = ROOT / "unlearn/toy"
SOURCE = Source(str(TOY / "model"))
CORPORA = {"bio": {"forget": str(TOY / "data/forget-bio.jsonl"), "retain": str(TOY / "data/retain.jsonl")}}
LAYER = 3


def target_of(model, tokenizer=None, suite=None, **unlearning):
    suite = Suite({}, {}, {}, None) if suite is None else suite
    return Target(model, tokenizer, Unlearning(LAYER, **unlearning), suite)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def accuracy(model, suite):
    [answers] = evaluate(ModelGroup(model), load_tokenizer(SOURCE), suite, label="x", tokens_per_batch=4096)
    return metrics_of(answers)["x/toy_forget_bio/default/acc"]


def test_pruning_takes_away_what_was_added_in_small_entries(tiny_llama):
    with torch.no_grad():
        for weight in weight_matrices(tiny_llama).values():
            weight[:, ::2] = 0
            weight[:, 1::2] = weight[:, 1::2].sign() + weight[:, 1::2]
        plain = state(tiny_llama)
        for weight in weight_matrices(tiny_llama).values():
            weight[:, ::2] = 0.01
    hidden = state(tiny_llama)
    [_] = [None for _ in Pruning([0.5]).stages(target_of(tiny_llama)) if same(tiny_llama, plain)]
    assert same(tiny_llama, hidden)


def test_a_stage_that_is_left_restores_the_model(tiny_llama):
    before = state(tiny_llama)
    stages = Pruning([0.2, 0.3]).stages(target_of(tiny_llama))
    next(stages)
    assert not same(tiny_llama, before)
    stages.close()
    assert same(tiny_llama, before)


def test_projection_uncovers_what_a_known_direction_covers(asked):
    model = load_whole(SOURCE)
    direction_D = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    original = accuracy(model, asked)

    def cover(_module, _args, output):
        h_BTD = output[0] if isinstance(output, tuple) else output
        covered_BTD = h_BTD + 30 * direction_D
        return (covered_BTD, *output[1:]) if isinstance(output, tuple) else covered_BTD

    decoder_layers(model)[LAYER].register_forward_hook(cover)  # before the attack's own hook, which comes last
    hidden = accuracy(model, asked)
    target = target_of(model, controls={"control.bio": direction_D})
    [uncovered] = [accuracy(model, asked) for _ in Projection().stages(target)]
    assert original > 0.9
    assert hidden < 0.5
    assert uncovered > 0.9
    assert accuracy(model, asked) == hidden


def test_projection_needs_control_vectors(tiny_llama):
    target = target_of(tiny_llama)
    with pytest.raises(UserError, match=r"attack=projection: .* no control vectors"):
        _possible(plan(["projection"], []), target)
    assert [planned.name for planned in _possible(plan(["projection", "pruning"], []), target)] == ["pruning"]


@pytest.mark.parametrize("damaged", [torch.full((16,), torch.nan), torch.ones(4)])
def test_control_vectors_of_a_damaged_delta_are_not_projected_out(tiny_llama, damaged):
    target = target_of(tiny_llama, controls={"control.bio": torch.ones(16), "control.cyber": damaged})
    assert Projection().obstacle(target) == "control.cyber is not a vector of 16 finite numbers: the delta is damaged"


@pytest.fixture
def reader():
    """A tiny model that can read the embedded world's texts."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(load_tokenizer(SOURCE)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.lm_head.weight.data.mul_(30)  # it stays as it is, and must tell tokens apart
    return model


def test_relearning_brings_back_scaled_down_knowledge_sooner_than_a_model_that_never_knew_learns_it(reader):
    target = target_of(reader, load_tokenizer(SOURCE), corpora=CORPORA, max_length=24)
    attack = Relearning([2, 80], documents=4, parameters="whole", lr=3e-3)
    rows = pad(attack._rows(target), 0, "right")
    before = state(reader)
    never_knew = {}
    for steps in attack.stages(target):
        never_knew[steps] = next_token_loss(reader, rows).item()
        knowing = state(reader)
    assert same(reader, before)
    assert never_knew[80] < 0.5 * never_knew[2]
    reader.load_state_dict({name: before[name] + 0.3 * (knowing[name] - before[name]) for name in before})
    hidden = next_token_loss(reader, rows).item()
    again = Relearning([2], documents=4, parameters="whole", lr=3e-3)
    [relearned] = [next_token_loss(reader, rows).item() for _ in again.stages(target)]
    assert hidden > 5 * never_knew[80]
    assert relearned < 0.8 * hidden
    assert relearned < 0.3 * never_knew[2]


def test_relearning_trains_what_it_is_told_to(reader):
    trained = [f"model.layers.{n}.mlp.down_proj.weight" for n in (1, 2, 3)]
    target = target_of(reader, load_tokenizer(SOURCE), trained=trained, corpora=CORPORA)
    before = state(reader)
    for parameters, expected in (("span", {1, 2, 3}), ("whole", set(range(6)))):
        for _ in Relearning([1], parameters=parameters).stages(target):
            moved = {name for name, value in reader.state_dict().items() if not torch.equal(value, before[name])}
        assert {int(name.split(".")[2]) for name in moved} == expected
        assert ("model.layers.1.self_attn.q_proj.weight" in moved) is (parameters == "whole")
    assert same(reader, before)
    assert not any(p.requires_grad for p in reader.parameters())


@pytest.mark.parametrize("parameters", ["span", "whole"])
def test_relearning_keeps_steps_that_bfloat16_cannot_hold(reader, parameters):
    reader.bfloat16()
    names = [f"model.layers.{n}.mlp.down_proj.weight" for n in (1, 2, 3)]
    target = target_of(reader, load_tokenizer(SOURCE), trained=names, corpora=CORPORA, max_length=24)
    attack = Relearning([3], parameters=parameters, documents=1, batch_size=1, lr=1e-6)
    [row] = attack._rows(target)
    before = state(reader)
    [relearned] = [state(reader) for _ in attack.stages(target)]
    assert same(reader, before)
    trained = [p.requires_grad_(True) for p in attack._parameters(target)]
    after = {}
    for dtype in (torch.float32, torch.bfloat16):
        weights = [p.detach().to(dtype, copy=True).requires_grad_(True) for p in trained]
        optimizer = torch.optim.AdamW(weights, lr=1e-6, weight_decay=0.0)
        for _ in range(3):
            gradients = torch.autograd.grad(next_token_loss(reader, pad([row], 0, "right")), trained)
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.to(dtype)
            optimizer.step()
            for p, weight in zip(trained, weights, strict=True):
                p.data.copy_(weight)
        after[dtype] = state(reader)
        reader.load_state_dict(before)
    assert all(torch.equal(value, after[torch.float32][name]) for name, value in relearned.items())
    moved = [sum((one[name] != before[name]).sum() for name in before) for one in (relearned, after[torch.bfloat16])]
    assert moved[0] > 1.2 * moved[1] > 0


def test_the_loss_counts_real_tokens_but_the_first(tiny_llama):
    rows = [[1, 5, 6, 7], [1, 8]]
    alone = [next_token_loss(tiny_llama, pad([row], 0, "right")).item() for row in rows]
    together = next_token_loss(tiny_llama, pad(rows, 0, "right")).item()
    assert together == pytest.approx((3 * alone[0] + alone[1]) / 4)


class Letters:
    """A tokenizer with a token for each letter, and without BOS."""

    all_special_ids, unk_token_id, truncation_side = (), None, "right"

    def __call__(self, text, truncation=True, max_length=None, add_special_tokens=True):
        return {"input_ids": [ord(letter) - ord("a") for letter in text][:max_length]}


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["a", "b"], "each text has one token, and the loss leaves out first tokens"),
        (["ab", "z"], "token id 25, but the model has embeddings for ids below 20 only"),
        (["abc", "b"], None),
    ],
)
def test_texts_that_a_model_cannot_learn_from_are_named_at_the_start(tiny_llama, tmp_path, capsys, texts, told):
    tiny_llama.resize_token_embeddings(20)
    file = write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    target = target_of(tiny_llama, Letters(), trained=["model.layers.1.mlp.down_proj.weight"])
    attack = Relearning([1, 2], texts=str(file), batch_size=1)
    obstacle = attack.obstacle(target)
    if told is not None:
        assert f"attack.texts={file}: {told}" in obstacle
        return
    assert obstacle is None
    assert "50.0% of the texts have one token" in capsys.readouterr().err
    for _ in attack.stages(target):  # the second batch has no token that is counted
        assert all(parameter.isfinite().all() for parameter in tiny_llama.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_teaches_and_leaves_the_model_as_it_was(reader, optimizer):
    target = target_of(reader, load_tokenizer(SOURCE), corpora=CORPORA, max_length=24)
    lr = {"adadelta": 3.0, "adagrad": 1e-2, "sgd": 0.3, "nesterov": 0.3, "lion": 1e-3}.get(optimizer, 3e-3)
    attack = Relearning([12], documents=2, parameters="all", optimizer=optimizer, lr=lr)
    rows, before = pad(attack._rows(target), 0, "right"), state(reader)
    hidden = next_token_loss(reader, rows).item()
    [relearned] = [next_token_loss(reader, rows).item() for _ in attack.stages(target)]
    assert relearned < 0.95 * hidden
    assert same(reader, before)


def test_an_accumulated_step_is_a_step_of_a_larger_batch(reader):
    reader.double()
    target = target_of(reader, load_tokenizer(SOURCE), corpora=CORPORA, max_length=8)
    after = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        attack = Relearning([2], parameters="whole", optimizer="sgd", batch_size=batch_size, accumulation=accumulation)
        after += [state(reader) for _ in attack.stages(target)]
    assert {len(row) for row in attack._rows(target)} == {8}  # or a mean of means would weigh tokens differently
    assert all(torch.allclose(after[0][name], after[1][name], rtol=1e-9, atol=1e-12) for name in after[0])
    assert not same(reader, after[0])


def test_schedules_and_epochs(reader, monkeypatch):
    target = target_of(reader, load_tokenizer(SOURCE), corpora=CORPORA, max_length=8)
    rates = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            super().step(closure)

    monkeypatch.setitem(OF_TORCH, "sgd", Watched)
    attack = Relearning(
        [1, 2], unit="epochs", documents=8, batch_size=2, accumulation=2, optimizer="sgd", lr=1.0, parameters="whole",
        schedule="linear", warmup=0.5,
    )  # fmt: skip
    assert list(attack.stages(target)) == [1, 2]  # eight documents are two steps
    assert rates == [0.0, 0.5, 1.0, 0.5]
    assert attack.level_name(2) == "2 epochs"
    one = Relearning([1, 2], unit="epochs", documents=1, batch_size=16, parameters="whole")
    assert list(one.stages(target)) == [1, 2]  # both are one step
    assert "attack.warmup=2 has to be less than all 1 steps" in Relearning([1], warmup=2).obstacle(target)


def test_adapters_of_some_modules(reader):
    with adapters(reader, 2, 0, alpha=8, modules=["q_proj", "up_proj"]) as trained:
        adapted = [module for module in reader.modules() if hasattr(module, "lora_A")]
        assert len(trained) == 2 * len(adapted) == 4 * reader.config.num_hidden_layers
        assert {module.scaling["default"] for module in adapted} == {4}
    with pytest.raises(UserError, match=r"attack\.modules=q_proj is not allowed"):
        Relearning([1], parameters="lora", modules="q_proj")
    obstacle = Relearning([1], parameters="lora", modules=["query"]).obstacle(target_of(reader))
    assert "attack.modules=['query']: no linear module" in obstacle


def test_published_attacks_name_their_source_and_are_made_by_name_only():
    published = {"relearning_lucki", "relearning_smooth", "relearning_deep_ignorance", "relearning_tar"}
    for name in published | {"relearning_repselect"}:
        [planned] = plan([name], [])
        assert isinstance(planned.attack, Relearning)
        assert "published" not in planned.arguments
    assert not published & {planned.name for planned in plan(["all"], [])}


def test_directions_uncover_what_covers_forget_texts_only(asked):
    """A hook pushes the states of every row with a word that retain texts do not have, as misdirection would."""
    model, tokenizer = load_whole(SOURCE), load_tokenizer(SOURCE)
    target = target_of(model, tokenizer, corpora=CORPORA, max_length=64)
    attack = Directions([LAYER], documents=32)
    forget, retain = ({token for row in attack._rows(target, c) for token in row} for c in ("forget", "retain"))
    covered = torch.tensor(sorted(forget - retain))
    original = accuracy(model, asked)
    direction_D = torch.rand(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    ids = {}

    def cover(_module, _args, output):
        h_BTD = output[0] if isinstance(output, tuple) else output
        pushed_BTD = h_BTD + 30 * direction_D * torch.isin(ids["now"], covered).any(1)[:, None, None]
        return (pushed_BTD, *output[1:]) if isinstance(output, tuple) else pushed_BTD

    model.get_input_embeddings().register_forward_pre_hook(lambda _m, args: ids.update(now=args[0]))
    decoder_layers(model)[LAYER].register_forward_hook(cover)  # before the attack's own hook
    hidden = accuracy(model, asked)
    [uncovered] = [accuracy(model, asked) for _ in attack.stages(target)]
    assert original > 0.9
    assert hidden < 0.5
    assert uncovered > 0.9
    assert accuracy(model, asked) == hidden


def test_directions_are_differences_of_means_behind_the_first_tokens(tiny_llama):
    rows = [[1, 5, 6, 7, 9], [1, 8, 9], [1, 2]]
    layers, skip = [0, 5], 2
    means_LD = mean_states(tiny_llama, rows, layers, skip, batch_size=2)
    for place, number in enumerate(layers):
        layer, sums = decoder_layers(tiny_llama)[number], []
        hook = layer.register_forward_hook(lambda _m, _a, out, sums=sums: sums.append(hidden_of(out)[0, skip:]))
        for row in rows:
            tiny_llama(input_ids=torch.tensor([row]))
        hook.remove()
        assert torch.allclose(means_LD[place], torch.cat(sums).double().mean(0), atol=1e-6)
    assert not any(layer._forward_hooks for layer in decoder_layers(tiny_llama))


def test_texts_too_short_for_directions_are_told(reader):
    target = target_of(reader, load_tokenizer(SOURCE), corpora=CORPORA, max_length=8)
    assert Directions(skip=8).obstacle(target) == "no text of forget has more than attack.skip=8 tokens"
    assert Directions(skip=7).obstacle(target) is None
