"""The memory that training needs, and whether activations are recomputed for it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from unlearn.config.identity import run_folder
from unlearn.errors import UserError
from unlearn.experiment import run, run_together
from unlearn.models.loading import Source, load_config, load_whole
from unlearn.runs import memory
from unlearn.runs.folder import RunFolder
from unlearn.runs.inputs import load_evaluation_inputs, load_inputs
from unlearn.runs.memory import check_training_memory, must_recompute, needed_memory
from unlearn.training.cost import Memory, Shape

LENGTHS = [[30, 40], [35, 20]]


@pytest.fixture
def shape(conf):
    config = conf()
    return Shape.of(load_config(Source.of(config.model)), config.model.layer)


def test_methods_on_likelihoods_need_the_whole_model_and_preferred_texts_their_tokens(conf, shape):
    need = {
        name: needed_memory([conf(f"method={name}")], shape, weight_bytes=4, recompute=False)
        for name in ("rmu", "npo", "dpo")
    }
    assert need["rmu"].weights < need["npo"].weights == need["dpo"].weights
    assert need["rmu"].working < need["npo"].working < need["dpo"].working
    mixed = needed_memory([conf("method=rmu"), conf("method=npo")], shape, weight_bytes=4, recompute=False)
    assert mixed == need["npo"]


def test_activations_are_recomputed_only_where_they_would_not_fit(conf, shape, monkeypatch):
    model = load_whole(Source.of(conf().model))

    def decided(free, *overrides):
        monkeypatch.setattr(memory, "free_memory", lambda _device: free)
        return must_recompute([conf(*overrides)] * 2, model, LENGTHS, made=0)

    need = needed_memory([conf("method=npo")], shape, weight_bytes=4, recompute=False, lengths=LENGTHS)
    enough = (need.working + 2 * need.variant) / 0.9 + 100
    assert decided(enough - 200, "method=npo")
    assert not decided(enough, "method=npo")
    assert not decided(0, "method=rmu")  # no layer above l is trained through
    assert not decided(0, "method=npo", "train.recompute=never")
    assert decided(enough, "method=npo", "train.recompute=always")


def test_matrices_that_are_there_need_no_memory_again(short, shape, monkeypatch):
    configs = [short("method=npo", f"seed={seed}") for seed in range(3)]
    lengths = load_inputs(configs[0]).lengths
    need = needed_memory(configs, shape, weight_bytes=4, recompute=False, lengths=lengths)
    left = need.working + 3 * need.variant - 3 * 3 * 4 * shape.trained  # three runs, each with three float32 matrices
    decided = []

    def noted(*_args, recompute, **_kwargs):
        decided.append(recompute)
        raise UserError("that is enough")

    monkeypatch.setattr("unlearn.experiment.train_variants", noted)
    for free in (left / 0.9 + 100, left / 0.9 - 100):
        monkeypatch.setattr(memory, "free_memory", lambda _device, free=free: free)
        with pytest.raises(UserError, match="that is enough"):
            run_together(configs)
    assert decided == [False, True]


def test_recomputing_needs_less_memory_for_the_same_variants(conf, shape):
    kept, again = (
        needed_memory([conf("method=npo")], shape, weight_bytes=4, recompute=recompute) for recompute in (False, True)
    )
    assert again.working < kept.working
    assert (again.weights, again.variant) == (kept.weights, kept.variant)


def test_eager_attention_needs_memory_for_each_pair_of_tokens(conf, shape):
    def working(shape, *overrides):
        return needed_memory([conf(*overrides)], shape, weight_bytes=4, recompute=False).working

    assert shape.kernel == "sdpa"
    topics = conf().data.topics.values()
    pairs = conf().train.batch_size * max(t.max_length**2 + (t.retain_max_length or t.max_length) ** 2 for t in topics)
    more = working(shape, "model.attn_implementation=eager") - working(shape)
    assert more == 2 * 4 * shape.heads * pairs  # two layers, float32
    chosen = replace(shape, kernel="eager")  # by transformers, for a model with no other kernel
    assert working(chosen) == working(shape) + more
    assert working(chosen, "model.attn_implementation=sdpa") == working(shape)


def test_texts_need_memory_for_as_long_as_they_are(short, shape, tmp_path, monkeypatch):
    corpora = {f: tmp_path / f"{f}.txt" for f in ("forget", "retain", "preferred")}
    for words, file in enumerate(corpora.values(), 1):
        file.write_text(("river " * words).strip() + "\n")
    config = short(
        "data=jsonl", f"+data.topics.a={{forget: {corpora['forget']}, retain: {corpora['retain']}, max_length: 99}}",
        "method=dpo", f"method.preferred={corpora['preferred']}", "data.on_exhausted=cycle", "data.held_out=0",
    )  # fmt: skip
    [[forget, retain, preferred]] = load_inputs(config).lengths
    assert (retain - forget, preferred - retain) == (1, 1)
    need, configured = (
        needed_memory([config], shape, weight_bytes=4, recompute=True, lengths=lengths).total(1)
        for lengths in ([[forget, retain, preferred]], None)
    )
    monkeypatch.setattr(memory, "TOO_HIGH", 0)
    monkeypatch.setattr(memory, "all_memory", lambda _device: need)
    assert need < configured
    assert RunFolder(run(config)).done


def test_a_model_that_does_not_fit_is_told_before_it_is_loaded(short, monkeypatch):
    config = short("eval=toy", "model.dtype=float32")
    whole = sum(w.numel() * w.element_size() for w in load_whole(Source.of(config.model)).parameters())
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=there, available=there))
    there = whole - 1
    with pytest.raises(UserError) as told:
        load_evaluation_inputs(config)
    assert str(told.value).startswith("eval: the whole model takes 0.0 GB in torch.float32, but cpu has 0.0 GB.")
    assert "Set model.device=balanced to spread it" in str(told.value)
    load_evaluation_inputs(short("eval=toy", "model.device=balanced"))
    there = whole
    load_evaluation_inputs(config)


def test_a_training_that_does_not_fit_is_told_before_anything_is_loaded(short, monkeypatch):
    config = short()
    monkeypatch.setattr(memory, "needed_memory", lambda *_, **__: Memory(800, 100, 100))
    monkeypatch.setattr(memory, "all_memory", lambda _device: there)
    there = 850  # the estimate is up to 15 % too high
    check_training_memory(config, Source.of(config.model), LENGTHS)
    there = 849
    monkeypatch.setattr("unlearn.experiment.load_up_to", None)
    with pytest.raises(UserError, match=r"train: this needs about 0\.0 GB, but cpu has 0\.0 GB\. Lower train"):
        run(config)
    assert RunFolder(run_folder(config)).record["status"] == "failed"


def test_what_is_trained_already_needs_no_memory_for_training(short, monkeypatch, capsys):
    folder = run(short())
    monkeypatch.setattr(memory, "all_memory", lambda _device: 0)
    assert run(short()) == folder
    assert "nothing to do" in capsys.readouterr().err
    assert RunFolder(run(short("eval=toy", "eval.limit=1"))).done  # takes the training over


@pytest.mark.parametrize("methods", [("rmu", "npo"), ("npo", "rmu")])
def test_of_a_pack_only_the_runs_that_do_not_fit_alone_are_refused(short, shape, monkeypatch, methods):
    configs = {name: short(f"method={name}") for name in methods}
    lengths = load_inputs(configs["rmu"]).lengths
    less, more = (
        needed_memory([configs[name]], shape, weight_bytes=4, recompute=True, lengths=lengths).total(1)
        for name in ("rmu", "npo")
    )
    monkeypatch.setattr(memory, "all_memory", lambda _device: (less + more) // 2)
    monkeypatch.setattr(memory, "TOO_HIGH", 0)
    errors = {name: o.error for name, o in zip(methods, run_together([*configs.values()]), strict=True)}
    assert errors["rmu"] is None
    assert str(errors["npo"]).startswith("train: this needs about")
