"""The public names: what a user's own code does with them, and that the command line gives the same bits."""

import ast
import inspect
import json
import runpy
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import unlearn
from tests.conftest import ROOT
from unlearn import RMU, RNA, CutModel, Optimizer, UserError, evaluate, train
from unlearn.config.settle import settle
from unlearn.experiment import run
from unlearn.methods.make import make_method, method_class

TOY = ROOT / "unlearn" / "toy"
RETAIN = TOY / "data" / "retain.jsonl"
TOPICS = {topic: (TOY / "data" / f"forget-{topic}.jsonl", RETAIN) for topic in ("bio", "cyber")}
OWN = ROOT / "examples" / "own_method.py"
ROWS = [[1, 3, 4, 5, 6], [1, 7, 8]] * 4


@pytest.fixture(scope="module")
def toy():
    return CutModel.load(TOY / "model", layer=3, device="cpu")


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, unlearn; assert not {'torch', 'transformers', 'pandas', 'lm_eval'} & set(sys.modules)"
    code += "; unlearn.RMU(c=1.0); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there_has_a_docstring_and_stands_in_the_document():
    document = (ROOT / "docs" / "api.md").read_text()
    for name in unlearn.__all__:
        assert inspect.getdoc(getattr(unlearn, name)), name
        assert f"`{name}`" in document or f"`{name}(" in document, name
    with pytest.raises(AttributeError, match="no attribute 'RMUU'"):
        _ = unlearn.RMUU


def test_the_defaults_are_those_of_the_configuration(conf):
    """conf/ holds the defaults of the command line; a model of its own settings is not among them."""
    config = conf("model=zephyr_7b_beta", "data=wmdp", "eval=none", "method=npo")
    defaults = {name: p.default for name, p in inspect.signature(train).parameters.items()}
    t, optimizer = config.train, Optimizer()
    assert defaults["optimizer"] == optimizer
    assert (defaults["batch_size"], defaults["seed"], defaults["log_every"]) == (t.batch_size, config.seed, t.log_every)
    assert (defaults["mask"], defaults["on_exhausted"]) == (config.loss.mask, config.data.on_exhausted)
    assert optimizer == Optimizer(t.optimizer, t.schedule, tuple(t.betas), t.eps, t.weight_decay, t.precision)
    assert replace(RNA(1.0), nu=config.rna.nu) == RNA(**asdict(config.rna))
    for method in ("adaptive_rmu", "npo", "simnpo", "dpo", "grad_diff"):
        configured = make_method(
            conf("model=zephyr_7b_beta", "eval=none", f"method={method}", "rna=none").method, RNA(0.0)
        )
        required = {key: getattr(configured, key) for key in ("beta",) if hasattr(configured, key)}
        assert type(configured)(**required) == configured


def test_variants_have_the_bits_of_the_command_lines_runs(short, tmp_path, toy):
    job = ("train.steps=3", "rna.nu=0.5", "data.topics.bio.max_length=64", "data.topics.cyber.max_length=64")
    job += ("data.topics.bio.retain_max_length=64", "data.topics.cyber.retain_max_length=64", "seed=7")
    delta = load_file(run(short(*job)) / "delta.safetensors")
    plain, variant = train(
        toy,
        [RMU(c=3.0), RMU(c=3.0, rna=RNA(nu=0.5))],
        TOPICS,
        steps=3,
        lr=2e-4,
        alpha=10,
        seed=[0, 7],
        mask="padding_and_bos",
        optimizer=Optimizer(schedule="linear"),
        max_length=64,
    )
    variant.save(tmp_path / "delta.safetensors")
    saved = load_file(tmp_path / "delta.safetensors")
    assert saved.keys() == delta.keys()
    assert all(torch.equal(saved[name], delta[name]) for name in delta)
    assert [record.step for record in variant.records] == [0, 1, 2]
    assert any(not torch.equal(plain.weights[name], w) for name, w in variant.weights.items())


def test_an_exported_checkpoint_gives_the_variants_logits(tmp_path, toy):
    before = {name: p.clone() for name, p in toy.model.named_parameters()}
    [variant] = train(toy, RMU(c=3.0), TOPICS, steps=2, lr=1e-2, alpha=1.0, max_length=32)
    variant.export(tmp_path / "out")
    assert all(torch.equal(p, before[name]) for name, p in toy.model.named_parameters())
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    text = AutoTokenizer.from_pretrained(tmp_path / "out")("the river is long", return_tensors="pt")["input_ids"]
    own = toy.logits(toy.suffix(toy.span(toy.prefix(text), variant.weights), text)[0])
    torch.testing.assert_close(exported(text).logits[0], own)
    assert not torch.allclose(own, toy.model(text).logits[0])
    with pytest.raises(UserError, match="not an empty folder"):
        variant.export(tmp_path / "out")


def test_a_model_up_to_layer_l_trains_alike_and_exports_the_whole_one(tmp_path, toy):
    cut = CutModel.load(TOY / "model", layer=3, whole=False, device="cpu")
    a, b = (train(m, RMU(c=3.0), TOPICS, steps=2, lr=1e-3, alpha=1.0, max_length=32)[0] for m in (toy, cut))
    assert all(torch.equal(a.weights[name], w) for name, w in b.weights.items())
    a.export(tmp_path / "a")
    b.export(tmp_path / "b")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_model_in_memory_and_token_ids(tiny_llama):
    variants = train(CutModel(tiny_llama.train(), 3), RMU(c=2.0), {"bio": (ROWS, ROWS)}, steps=2, lr=1e-2, alpha=1)
    assert set(variants[0].weights) == {f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)}
    with pytest.raises(UserError, match=r"^topic bio, forget: texts need a tokenizer"):
        train(CutModel(tiny_llama, 3), RMU(c=2.0), {"bio": (["a text"], ["another"])}, steps=1, lr=1e-2, alpha=1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methods": []}, "^methods is empty"),
        ({"steps": 0}, "^steps=0 is not allowed: it must be an integer >= 1"),
        ({"lr": -1}, "^lr=-1 is not allowed: it must be a finite number > 0"),
        ({"lr": [1e-3, 1e-3]}, "^lr has 2 values for 1 methods"),
        ({"alpha": {"cyber": 1.0}}, "^alpha has no value for topic 'bio'"),
        ({"optimizer": "adamw"}, r"^optimizer='adamw' is not allowed: it must be Optimizer"),
        ({"mask": "paddin"}, "^mask=paddin is not allowed. Did you mean 'padding'"),
        ({"steps": 9}, "^topic bio, forget: there are 8 texts, but training needs 36"),
        ({"topics": {}}, "^topics is empty"),
        ({"topics": {"bio": ([[]], ROWS)}}, "^topic bio, forget: text 0 is neither a string nor a list of token ids"),
        ({"methods": unlearn.DPO(0.1)}, "needs preferred texts"),
    ],
)
def test_what_is_not_allowed_is_named(tiny_llama, changed, message):
    arguments = {"methods": RMU(c=2.0), "topics": {"bio": (ROWS, ROWS)}, "steps": 1, "lr": 1e-2, "alpha": 1.0}
    with pytest.raises(UserError, match=message):
        train(CutModel(tiny_llama, 3), **(arguments | changed))


def test_a_layer_out_of_reach_is_named(tiny_llama):
    with pytest.raises(UserError, match=r"^layer=1 is not allowed: .*so it must be in 2\.\.5"):
        CutModel(tiny_llama, 1)


def test_a_loss_that_is_not_finite_stops_its_variant_only(tiny_llama, tmp_path):
    methods = [RMU(c=1e30), RMU(c=2.0)]
    with pytest.warns(UserWarning, match="the loss became nan"):
        bad, good = train(CutModel(tiny_llama, 3), methods, {"bio": (ROWS, ROWS)}, steps=2, lr=1e-2, alpha=1.0)
    assert good.error is None
    with pytest.raises(UserError, match=r"RMU.* stopped: the loss became nan"):
        bad.save(tmp_path / "delta.safetensors")


def test_scores_are_rows_of_the_base_model_and_of_each_variant(toy):
    variants = train(toy, [RMU(c=3.0), RMU(c=9.0)], TOPICS, steps=2, lr=1e-2, alpha=1.0, max_length=32)
    held_out = ["the river runs along the old town and its walls to the sea"] * 3
    scores = evaluate(
        toy,
        variants,
        tasks={"retain": ["toy_retain"]},
        texts={"retain": {"river": held_out}},
        include_path=str(TOY / "tasks"),
        forget_tokens=["virus"],
        subset=8,
    )
    own = scores[scores.against.isna()]
    accuracies = own[(own.measure == "acc") & (own["query"] == "default")]
    assert accuracies.variant.fillna(-1).tolist() == [-1, 0, 1]
    assert set(own[own.measure == "nats"]["query"]) == {"default", "perturbed"}
    assert {"base", "default"} == set(scores.against.dropna())
    nats = own[(own.measure == "nats") & (own["query"] == "default")].value.tolist()
    assert len(set(nats)) == 3
    with pytest.raises(UserError, match="there is nothing to ask"):
        evaluate(toy, variants)


def test_a_method_in_the_users_own_file_by_the_command_line(short, tmp_path, monkeypatch, toy):
    """Its class is found in the current folder; the run is named after it, and gives the bits of the API."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_method.py").write_text(OWN.read_text())
    lengths = [f"data.topics.{t}.{k}=32" for t in TOPICS for k in ("max_length", "retain_max_length")]
    folder = run(short("method._target_=my_method.Opposite", "method.c=0.5", *lengths))
    assert folder.name.startswith("opposite-toy-")
    delta = load_file(folder / "delta.safetensors")
    own = vars(sys.modules[f"method in {tmp_path / 'my_method.py'}"])["Opposite"]
    linear = Optimizer(schedule="linear")
    how = {"steps": 3, "lr": 2e-4, "alpha": 10, "mask": "padding_and_bos", "optimizer": linear, "max_length": 32}
    [variant] = train(toy, own(c=0.5, rna=RNA(0.5)), TOPICS, **how)
    assert all(torch.equal(w, delta[name]) for name, w in variant.weights.items())
    (tmp_path / "my_method.py").write_text(OWN.read_text().replace("-self.c", "-2 * self.c"))
    with pytest.raises(UserError, match=r"holds a run with the same configuration but other inputs.*method"):
        run(short("method._target_=my_method.Opposite", "method.c=0.5", *lengths))
    with pytest.raises(UserError, match=r"^method\.c=-1 is not allowed"):
        short("method._target_=my_method.Opposite", "method.c=-1")
    with pytest.raises(UserError, match=r"^method\.norm: unknown key\. Opposite takes: c\. ~method\.norm takes it out"):
        short("method._target_=my_method.Opposite", "method.c=1", "+method.norm=sample")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=r"broken\.py cannot be imported: ZeroDivisionError"):
        short("method._target_=broken.Opposite")
    (tmp_path / "other.py").write_text("class Opposite:\n    pass\n")
    with pytest.raises(UserError, match=r"other\.py has no complete class Opposite that is derived from Misdirection"):
        short("method._target_=other.Opposite")


def test_a_finished_runs_folder_imports_no_code(short, tmp_path, monkeypatch):
    """Whoever opens a folder of somebody else must not run the file that its configuration names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text("raise SystemExit('the file was run')")
    folder = run(short("train.steps=1"))
    record = json.loads((folder / "run.json").read_text())
    record["config"]["method"] |= {"_target_": "trap.Opposite", "name": "opposite"}
    config = settle(OmegaConf.create(record["config"]), trained=True)
    assert config.method["_target_"] == "trap.Opposite"


def test_the_scripts_and_the_notebook_of_the_examples_run(capsys, tmp_path):
    for file, arguments in (("own_method.py", {"steps": 2}), ("unlearn_in_memory.py", {"steps": 2, "questions": 8})):
        runpy.run_path(str(ROOT / "examples" / file))["main"](**arguments)
    assert "model.safetensors" in capsys.readouterr().out
    notebook = json.loads((ROOT / "examples" / "unlearn.ipynb").read_text())
    assert all(cell.get("outputs", []) == [] for cell in notebook["cells"])
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    script = tmp_path / "notebook.py"
    script.write_text("\n".join(cells).replace("STEPS, QUESTIONS = 100, 40", "STEPS, QUESTIONS = 2, 8"))
    names = runpy.run_path(str(script))
    assert names["table"].shape == (4, 3)


def test_the_example_of_the_document_is_python():
    """Its names are public ones."""
    document = (ROOT / "docs" / "api.md").read_text()
    blocks = [part.split("```")[0] for part in document.split("```python\n")[1:]]
    for block in blocks:
        imported = [n for n in ast.walk(ast.parse(block)) if isinstance(n, ast.ImportFrom) and n.module == "unlearn"]
        assert {alias.name for node in imported for alias in node.names} <= set(unlearn.__all__)
    assert len(blocks) >= 2


@pytest.mark.parametrize("target", ["{}.Opposite", ".{}.Opposite", "..own.Opposite", "Opposite"])
def test_a_target_names_no_file_of_another_folder(tmp_path, monkeypatch, target):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "own.py").write_text("raise SystemExit('imported')\n")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(UserError, match="is not allowed"):
        method_class(target.format(elsewhere / "own"))


def test_what_is_no_method_or_no_noise_is_refused(tiny_llama):
    model = CutModel(tiny_llama, layer=4)
    ids = [[1, 2, 3]] * 8
    common = {"topics": {"a": (ids, ids)}, "steps": 1, "lr": 1e-3, "alpha": 1.0}
    with pytest.raises(UserError, match="is no method"):
        train(model, RMU, **common)
    with pytest.raises(UserError, match=r"rna=0\.1 is not allowed"):
        train(model, RMU(c=3, rna=0.1), **common)
    with pytest.raises(UserError, match="topic a: give two corpora"):
        train(model, RMU(c=3), **(common | {"topics": {"a": "forget.jsonl"}}))
