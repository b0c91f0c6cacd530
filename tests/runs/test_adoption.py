"""Adopting a checkpoint: a run's folder of an unlearned model and its base, without training."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import ROOT, assert_same_results
from unlearn import adopt
from unlearn.analysis.collect import read_run
from unlearn.attacks.attack import Target, Unlearning
from unlearn.attacks.make import plan
from unlearn.attacks.run import attack
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.experiment import run
from unlearn.models import difference
from unlearn.models.delta import check_delta, dtype_of, load_delta
from unlearn.models.difference import check_same_architecture, compare_checkpoints, relative_change
from unlearn.models.export import export
from unlearn.models.loading import Source
from unlearn.paper.theory.finished_run import read_run as read_for_theory
from unlearn.records.attacks import attack_folders, read_attack
from unlearn.runs.evaluation import evaluate_run, run_config
from unlearn.runs.folder import RunFolder

TOY = ROOT / "unlearn/toy/model"
TOY_BASE = "model=toy"
ASKED = ("data=toy", "eval=toy", "eval.limit=2")
DOWN = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2, 3)]


@pytest.fixture(scope="module")
def trained(conf, tmp_path_factory):
    """A run, and its export."""
    root = tmp_path_factory.mktemp("trained")
    config = conf("train.steps=1", "train.lr=1e-2", "tracker=none", *ASKED[1:], f"output_root={root}")
    folder = run(config)
    export(folder, root / "exported")
    return folder, root / "exported"


@pytest.fixture(scope="module")
def adopted(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("adopted")
    return adopt(str(trained[1]), TOY_BASE, [*ASKED, f"output_root={root}"])


@pytest.fixture
def changed(tmp_path):
    """A checkpoint of the embedded model with some parameters changed, in several files."""

    def make(*names, factor=2.0, folder="changed", **saving):
        model = AutoModelForCausalLM.from_pretrained(TOY)
        for name in names:
            model.get_parameter(name).data *= factor
        model.save_pretrained(tmp_path / folder, **{"max_shard_size": "1MB", **saving})
        return tmp_path / folder

    return make


def adopted_from(checkpoint, tmp_path, *overrides, base=TOY_BASE, name="toy"):
    overrides = [*overrides, f"model.name={name}"]
    return adopt(str(checkpoint), base, [*overrides, f"output_root={tmp_path / 'outputs'}"])


def test_an_adopted_checkpoint_gives_the_figures_of_its_own_run_to_the_bit(trained, adopted, tmp_path):
    folder, exported = trained
    assert_same_results(folder, adopted)
    assert_same_results(folder, evaluate_run(RunFolder(adopted), []))
    attack([adopted], plan(["pruning"], ["attack.levels=[0.5]"]), ["eval.queries=[default]"])
    assert {read_attack(of)[0].attack for of in attack_folders(adopted)} == {"none", "pruning"}
    export(adopted, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_what_nobody_gave_is_in_no_identity(trained, tmp_path, adopted):
    record = json.loads((adopted / "run.json").read_text())
    assert record["status"] == "done"
    assert {key: record["identity"][key] for key in ("method", "rna", "train", "loss")} == {
        "method": {"name": "unknown"}, "rna": {}, "train": {}, "loss": {},
    }  # fmt: skip
    assert not {"seed", "layer", "parameters"} & {*record["identity"], *record["identity"]["model"]}
    assert record["adopted"]["changes"].keys() == set(DOWN)
    assert record["adopted"]["checkpoint"].startswith(record["identity"]["adopted"]["checkpoint"])
    assert record["config"]["model"]["layer"] == 3  # the highest that differs, which attacks look at
    known = ("method=rmu", "method.c=3", "rna=none", "loss.alpha=10", "train.steps=3", "model.layer=3", "seed=4")
    folder = adopted_from(trained[1], tmp_path, *known)
    identity = read_run(folder).identity
    assert folder.name.startswith("rmu-toy-")
    assert identity["method"] == {"name": "rmu", "_target_": "unlearn.methods.RMU", "c": 3.0}
    assert (identity["rna"], identity["train"], identity["loss"]) == ({"nu": 0.0}, {"steps": 3}, {"alpha": 10.0})
    assert (identity["seed"], identity["model"]["layer"]) == (4, 3)
    assert "data" not in identity


def test_the_name_follows_from_content(trained, changed, tmp_path, capsys):
    shutil.copytree(trained[1], tmp_path / "elsewhere")
    folder = adopted_from(trained[1], tmp_path)
    assert adopted_from(tmp_path / "elsewhere", tmp_path, base=str(TOY), name="toy") == folder
    assert "adopted with this evaluation: nothing to do" in capsys.readouterr().err
    assert adopted_from(changed(DOWN[0]), tmp_path) != folder


def test_the_delta_has_the_dtype_of_the_checkpoint_and_its_base_is_cast_as_a_run_casts_it(trained, tmp_path):
    exported = AutoModelForCausalLM.from_pretrained(trained[1], dtype=torch.bfloat16)
    exported.save_pretrained(tmp_path / "exported")
    folder = adopted_from(tmp_path / "exported", tmp_path)
    file = folder / "delta.safetensors"
    weights, metadata = load_delta(file)
    assert dtype_of(file) == "bfloat16"
    assert list(weights) == DOWN
    assert all(torch.equal(weights[name], exported.get_parameter(name)) for name in DOWN)
    check_delta(AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.bfloat16), weights, metadata)


def test_every_kind_of_parameter_may_differ(changed, tmp_path, monkeypatch, capsys):
    names = ["model.embed_tokens.weight", "model.layers.5.self_attn.q_proj.weight", "model.norm.weight"]
    monkeypatch.setattr(difference, "load_whole", lambda _: pytest.fail("tensors are read one at a time"))
    checkpoint = changed(*names)
    assert len(list(checkpoint.glob("*.safetensors"))) > 1
    folder = adopted_from(checkpoint, tmp_path)
    assert "model.layers.*.self_attn.q_proj.weight in layers 5: 1" in capsys.readouterr().err
    record = json.loads((folder / "run.json").read_text())
    assert record["adopted"]["changes"] == dict.fromkeys(names, 1.0)
    assert record["config"]["model"]["layer"] == 5
    export(folder, tmp_path / "out")
    ids = torch.arange(3, 40).view(1, -1)
    first, second = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (checkpoint, tmp_path / "out"))
    assert torch.equal(first, second)


def test_an_adapter_is_put_onto_its_base(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(TOY)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[4], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    folder = adopted_from(tmp_path / "adapter", tmp_path)
    weights, _ = load_delta(folder / "delta.safetensors")
    name = "model.layers.4.self_attn.q_proj.weight"
    assert list(weights) == [name]
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    down, up = (next(w for key, w in stored.items() if part in key) for part in ("lora_A", "lora_B"))
    base = AutoModelForCausalLM.from_pretrained(TOY).get_parameter(name)
    assert torch.allclose(weights[name], base + config.lora_alpha / 2 * up @ down, atol=1e-6)


def test_what_needs_more_than_is_known_says_so(trained, tmp_path):
    folder = adopted_from(trained[1], tmp_path)
    assert run_config(RunFolder(folder), []).data.topics == {}
    target = Target(None, None, Unlearning(layer=3))
    for planned in plan(["relearning", "directions"], []):
        assert "the texts that this model was to forget are not known" in planned.attack.obstacle(target)
    with pytest.raises(UserError, match=r"rna\.nu is not known"):
        read_for_theory(folder, 8)


def test_rounding_is_told_and_is_no_difference(tmp_path):
    AutoModelForCausalLM.from_pretrained(TOY, dtype=torch.bfloat16).float().save_pretrained(tmp_path / "rounded")
    sources = Source(str(tmp_path / "rounded")), Source(str(TOY))
    found = compare_checkpoints(*sources, torch.float32)
    assert (len(found.changes), found.rounded) == (75, [])
    assert 0 < max(found.changes.values()) < 2**-8
    with pytest.raises(UserError, match="all 75 parameters are those of the base after rounding to bfloat16"):
        compare_checkpoints(*sources, torch.bfloat16)


def test_the_relative_change_of_a_zero_is_infinite():
    assert relative_change(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert relative_change(torch.ones(2), torch.zeros(2)) == float("inf")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["TOY", "--base", TOY_BASE], "all 75 parameters are those of the base"),
        (["RUN", "--base", TOY_BASE], "is the folder of a run"),
        (["/nowhere", "--base", TOY_BASE], "/nowhere is neither a folder with a run or a checkpoint"),
        (["TOY", "--base", "/nowhere"], "/nowhere is neither a folder with a run or a checkpoint"),
        (["model=toy", "--base", TOY_BASE], "CHECKPOINT must be a folder, a hub id or a GGUF file"),
        (["EXPORT", "--base", TOY_BASE, "method.c=3"], "method.c is an argument of a method: give the method, too"),
        (["EXPORT", "--base", TOY_BASE, "experiment=zephyr_wmdp"], "experiment=zephyr_wmdp is not allowed: for an"),
        (["EXPORT", "--base", TOY_BASE, "rna.nuu=1"], "rna.nuu: unknown key. Did you mean 'rna.nu'?"),
        (["EXPORT", "--base", TOY_BASE, "eval=toy", "eval.queries=[control]"], "control queries need words"),
    ],
)
def test_mistakes_are_one_line(trained, tmp_path, given, told):
    places = {"TOY": str(TOY), "RUN": str(trained[0]), "EXPORT": str(trained[1])}
    with pytest.raises(SystemExit, match=r"^Error: [^\n]*$") as stop:
        main(["adopt", *(places.get(word, word) for word in given), f"output_root={tmp_path}"])
    assert told in str(stop.value)
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model_type", "llama", "its model_type is llama, the base's mistral"),
        ("num_hidden_layers", 4, "its num_hidden_layers is 4, the base's 8"),
        ("vocab_size", 900, "its vocab_size is 900, the base's 832"),
        ("quantization_config", {"quant_method": "gptq"}, "its weights are quantised"),
        ("intermediate_size", 8, None),
    ],
)
def test_checkpoints_of_another_architecture_are_refused(tmp_path, capsys, key, value, told):
    config = json.loads((TOY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    sources = Source(str(tmp_path)), Source(str(TOY))
    if told is None:
        check_same_architecture(*sources)
        assert f"config.json of the two differs in {key}" in capsys.readouterr().err
        return
    with pytest.raises(UserError, match=told):
        check_same_architecture(*sources)


def test_another_shape_and_another_vocabulary_are_refused(changed, tmp_path, capsys):
    checkpoint = changed(DOWN[0], max_shard_size="1GB")
    tokenizer = AutoTokenizer.from_pretrained(TOY)
    tokenizer.add_tokens(["unheard-of"])
    tokenizer.save_pretrained(checkpoint)
    sources = Source(str(checkpoint)), Source(str(TOY))
    check_same_architecture(*sources)
    assert "its tokenizer has 1 more tokens. That of the base is used" in capsys.readouterr().err
    written = (checkpoint / "tokenizer.json").read_text()
    word = next(token for token in tokenizer.get_vocab() if len(token) > 4 and token.isalpha())
    (checkpoint / "tokenizer.json").write_text(written.replace(f'"{word}"', '"otherwise"'))
    with pytest.raises(UserError, match="its tokenizer has another vocabulary than that of the base"):
        check_same_architecture(*sources)
    other = changed(DOWN[0], folder="other", max_shard_size="1GB")
    model = AutoModelForCausalLM.from_pretrained(TOY)
    model.get_submodule("model.layers.1.mlp").down_proj = torch.nn.Linear(8, 128, bias=False)
    model.save_pretrained(other)
    with pytest.raises(UserError, match=rf"{DOWN[0]} has the shape \(128, 8\), in the base"):
        adopted_from(other, tmp_path)
