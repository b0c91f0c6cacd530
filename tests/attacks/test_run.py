"""`unlearn attack`: plans, the files it leaves, going on after an interruption, the table."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT, read_metrics
from unlearn.attacks import attack as asking
from unlearn.attacks.make import plan
from unlearn.attacks.run import attack
from unlearn.attacks.stages import Stages
from unlearn.attacks.table import nothing_forgotten
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.evaluate.suite import Suite
from unlearn.experiment import run, run_together
from unlearn.models.loading import Source, load_whole

TOY = str(ROOT / "unlearn/toy/model")
BAD = {
    ("pruning", "attack.levels=[1.5]"): r"attack\.levels=\[1\.5\] is not allowed: .* above 0 and below 1",
    ("pruning", "attack.levels=0.3"): r"attack\.levels=0\.3 is not allowed: it must be a list",
    ("rounding", "attack.levels=[]"): "integers from 2 to 16",
    ("rounding", "attack.levels=[4.5]"): "integers from 2 to 16",
    ("quantization", "attack.levels=[3]"): "list of 8 and 4",
    ("quantization", "attack.four_bits=nf5"): "Did you mean 'nf4'",
    ("relearning", "attack.parameters=head"): r"attack\.parameters=head is not allowed\. Allowed: span, whole, lora",
    ("relearning", "attack.rank=0"): r"attack\.rank=0",
    ("lens", "attack.levels=[1.5]"): "layers, integers from 0",
    ("fewshot", "attack.levels=[0]"): "numbers of examples",
    ("shuffled", "attack.levels=[-1]"): "seeds",
    ("continuation", "attack.prompt=Answer"): "must be a text with",
    ("open", "attack.questions=0"): r"attack\.questions=0",
    ("rephrased", "+attack.tasks.forget=wmdp_bio"): r"it must be role: \[task",
    ("relearning", "attack.documents=0"): r"attack\.documents=0",
    ("relearning", "attack.documents=2.5"): r"attack\.documents=2\.5 is not allowed: it must be an integer above 0",
    ("relearning", "attack.lr=fast"): r"attack\.lr=fast is not allowed: it must be a number above 0",
    ("relearning", "attack.texts=3"): r"attack\.texts=3 is not allowed",
    ("noise", "+attack.level=[1]"): r"attack\.level: unknown key\. Did you mean 'levels'\?",
    ("noise", "attack._target_=os.system"): r"must name an attack below unlearn\.attacks",
    ("noise", "attack._target_=unlearn.attacks.make.Planned"): r"must name an attack below unlearn\.attacks",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, conf):
    root = tmp_path_factory.mktemp("attacked")
    return run(conf("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={root}"))


@pytest.mark.parametrize("name_and_override", BAD)
def test_refused_before_a_model_is_loaded(name_and_override):
    name, override = name_and_override
    with pytest.raises(UserError, match=BAD[name_and_override]):
        plan([name], [override])


def test_an_attack_knows_the_topics_that_were_unlearned_and_no_others(short, monkeypatch):
    victims = []
    monkeypatch.setattr("unlearn.attacks.run._measure", lambda victim, *_: victims.append(victim))
    folder = run(short("data.use=[bio]", "train.steps=2", "eval=toy", "eval.subset=4", "eval.queries=[default]"))
    attack([folder], plan(["relearning"], []), [])
    assert [list(victim.corpora) for victim in victims] == [["bio"]] * 4


def test_all_attacks_of_the_folder_are_planned():
    names = [file.stem for file in sorted((ROOT / "conf/attack").glob("*.yaml"))]
    assert [p.name for p in plan(["all"], [])] == names
    assert len(names) > 10
    with pytest.raises(UserError, match=r"attack=nois: unknown\. Did you mean 'noise'\?"):
        plan(["nois"], [])
    with pytest.raises(UserError, match="goes with one attack"):
        plan(["noise", "pruning"], ["attack.levels=[1]"])


def test_results_are_kept_after_each_stage_and_not_asked_again(finished, monkeypatch, capsys):
    asked = []
    real = asking.evaluate

    def broken(*args, label, **kwargs):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(label)
        return real(*args, label=label, **kwargs)

    planned = plan(["rounding"], ["attack.levels=[6,3]"])
    monkeypatch.setattr(asking, "evaluate", broken)
    with pytest.raises(KeyboardInterrupt):
        attack([finished], planned, [])
    [file] = (finished / "attacks").glob("rounding-*.json")
    assert list(json.loads(file.read_text())["stages"]) == ["6"]
    monkeypatch.setattr(asking, "evaluate", lambda *a, label, **k: asked.append(label) or real(*a, label=label, **k))
    attack([finished], planned, [])
    assert asked == ["unlearned", "base", "unlearned", "unlearned", "base", "base"]
    attack([finished], planned, [])
    assert len(asked) == 6
    record = json.loads(file.read_text())
    assert set(record["stages"]) == {"6", "3"}
    assert record["config"] == {"target": "unlearn.attacks.weights.Rounding", "levels": [6, 3]}
    assert record["stages"]["3"]["unlearned/toy_retain/perturbed/acc"] >= 0
    said = capsys.readouterr().err
    assert "Nothing was forgotten" in said  # two steps
    assert "Evaluating the unlearned model, 3 bits: default, perturbed queries" in said
    rows = [line.split() for line in said.splitlines() if line.split()[:3] == ["rounding", "3", "bits"]]
    assert [row[3] for row in rows[-2:]] == ["unlearned", "base"]
    assert all(row[4:6] == ["accuracy,", "%"] for row in rows)
    assert all(len(row) == 12 for row in rows)  # three roles, default and perturbed
    assert set(record["base"]) == {"6", "3"}
    assert "base/toy_retain/default/acc" in record["base"]["3"]
    metrics = read_metrics(finished)
    [untouched] = (finished / "attacks").glob("none-*.json")
    found = json.loads(untouched.read_text())["stages"]["0"]
    assert {name: metrics[name] for name in found} == found  # without an attack, what the run's own evaluation found


@pytest.mark.parametrize(
    ("accuracy", "nats", "nothing"),
    [
        (0.97, 3.0, True),
        (0.6, 3.0, False),
        (0.97, 5.0, False),
        (None, 3.05, True),
        (None, 5.0, False),
        (None, None, False),
    ],
)
def test_whether_nothing_was_forgotten(tmp_path, accuracy, nats, nothing):
    """In questions or in texts; where neither was asked nothing is said."""

    def metrics(label, acc, nll):
        found = {f"{label}/bio/default/acc": acc, f"{label}/papers/default/nats": nll}
        return {name: value for name, value in found.items() if value is not None}

    base = metrics("base", accuracy and 0.98, nats and 3.0)
    roles = {"forget": ["bio"], "forget_text": ["papers"]}
    untouched = Stages(
        tmp_path / "x", {"roles": roles}, {"0": metrics("unlearned", accuracy, nats)}, {"base": {"0": base}}
    )
    assert nothing_forgotten(untouched) is nothing


def test_runs_that_share_a_model_load_it_once_and_find_it_as_it_was(finished, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("unlearn.attacks.run.load_whole", lambda source: loaded.append(source) or load_whole(source))
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("attacks"))
    planned = plan(["rounding"], ["attack.levels=[3]"]) + plan(["relearning"], ["attack.levels=[2]"])
    attack(folders, planned, ["eval=toy", "eval.limit=10"])
    assert len(loaded) == 1
    files = sorted(file.name for file in (folders[0] / "attacks").iterdir())
    assert len(files) == 3
    for name in files:
        a, b = (json.loads((folder / "attacks" / name).read_text())["stages"] for folder in folders)
        assert a == b


def test_a_model_that_never_knew_learns_the_same_texts(finished, tmp_path, capsys):
    folder, ignorant = tmp_path / "run", tmp_path / "ignorant"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("attacks"))
    shutil.copytree(TOY, ignorant)
    model = load_whole(Source(TOY))
    model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(ignorant)
    planned = plan(["rounding"], ["attack.levels=[8]"]) + plan(["relearning"], ["attack.levels=[2]"])
    limits = ["eval=toy", "eval.limit=10"]
    attack([folder], planned, limits, ignorant=str(ignorant))
    said = capsys.readouterr().err
    [relearning] = [f.name for f in (folder / "attacks").glob("relearning-*")]
    found = {f.name.partition("-")[0]: json.loads(f.read_text()) for f in (folder / "attacks").iterdir()}
    accuracy = "ignorant/toy_retain/default/acc"
    assert found["none"]["ignorant"]["0"][accuracy] < 0.6 < found["none"]["base"]["0"]["base/toy_retain/default/acc"]
    assert accuracy in found["relearning"]["ignorant"]["2"]
    assert "ignorant" not in found["rounding"]
    assert [line.split()[3] for line in said.splitlines() if line.split()[:3] == ["relearning", "2", "steps"]] == [
        "unlearned", "base", "ignorant"
    ]  # fmt: skip
    attack([folder], planned, limits, ignorant=str(ignorant))  # nothing is measured again ...
    attack([folder], planned, limits)  # ... or lost
    assert "Evaluating" not in capsys.readouterr().err
    assert json.loads((folder / "attacks" / relearning).read_text()) == found["relearning"]
    with pytest.raises(UserError, match=r"--ignorant /nope: .*: there is no such folder"):
        attack([folder], planned, limits, ignorant="/nope")
    config = json.loads((ignorant / "config.json").read_text())
    (ignorant / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    with pytest.raises(UserError, match=r"--ignorant .*: its num_hidden_layers is 7, the base model's 8\."):
        attack([folder], planned, limits, ignorant=str(ignorant))


def test_the_attacked_run_must_be_finished_and_keeps_its_training(finished, tmp_path):
    planned = plan(["noise"], [])
    with pytest.raises(UserError, match="no finished run"):
        attack([tmp_path], planned, [])
    with pytest.raises(UserError, match=r"method=rsv: .* only eval"):
        attack([finished], planned, ["method=rsv"])


def test_a_command_without_a_run_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["attack", "attack=noise"])
    assert end.value.code == 2
    assert "folder of a finished run" in capsys.readouterr().err


def test_a_run_whose_folder_has_an_equals_sign_in_its_path_is_attacked(short, tmp_path):
    folder = run(short("eval=toy", "eval.subset=4", "eval.queries=[default]", f"output_dir='{tmp_path / 'nu=0.5'}'"))
    main(["attack", str(folder), "attack=rounding"])
    assert any((folder / "attacks").glob("rounding-*.json"))


def test_a_run_makes_the_attacks_of_its_configuration_and_keeps_its_name(tmp_path, conf):
    short = ("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={tmp_path}")
    folder = run(conf(*short, "attacks=[shuffled]"))
    assert folder == run(conf(*short))
    [file] = (folder / "attacks").glob("shuffled-*.json")
    assert json.loads(file.read_text())["levels"] == {"0": "order 0"}
    run(conf(*short, "attacks=[shuffled,rounding]"))  # the finished run is attacked further
    assert any((folder / "attacks").glob("rounding-*.json"))
    assert json.loads((folder / "run.json").read_text())["attacked"] == ["rounding", "shuffled"]
    assert list(json.loads(file.read_text())["stages"]) == ["0"]


def test_points_of_a_grid_that_differ_in_their_attacks_are_one_run_with_all_of_them(tmp_path, conf):
    short = ("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={tmp_path}")
    a, b = run_together([conf(*short, f"attacks=[{name}]") for name in ("shuffled", "rounding")])
    assert (a.folder, a.error) == (b.folder, b.error) == (a.folder, None)
    assert json.loads((a.folder / "run.json").read_text())["attacked"] == ["rounding", "shuffled"]
    assert {file.name.partition("-")[0] for file in (a.folder / "attacks").iterdir()} == {
        "none",
        "rounding",
        "shuffled",
    }


def test_an_attack_that_a_run_does_not_allow_is_left_out_and_the_run_is_done(tmp_path, conf, capsys):
    """In a grid over methods the others have it. A command for this attack alone is refused."""
    short = ("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={tmp_path}")
    folder = run(conf(*short, "method=grad_diff", "attacks=[projection]"))
    assert "Left out: attack=projection: this run's method has no control vectors" in capsys.readouterr().err
    assert json.loads((folder / "run.json").read_text())["attacked"] == ["projection"]
    with pytest.raises(UserError, match="attack=projection: this run's method"):
        attack([folder], plan(["projection"], []), [])


def test_other_tasks_are_a_part_of_what_determines_their_figures(finished, monkeypatch):
    """Corrected answers, or more questions, of tasks that the run itself was not asked."""
    asked, real = [], asking.evaluate
    monkeypatch.setattr(asking, "evaluate", lambda *a, label, **k: asked.append(label) or real(*a, label=label, **k))
    planned, without = (
        plan(["rephrased"], ["+attack.tasks.forget=[toy_near_bio]"]),
        ["eval.subset=4", "~eval.tasks.near"],
    )
    attack([finished], planned, without)
    before = len(asked)
    attack([finished], planned, without)
    assert len(asked) == before
    sha256 = Suite._sha256
    monkeypatch.setattr(Suite, "_sha256", lambda *a: sha256(*a) + ("corrected" if a[-1] == "toy_near_bio" else ""))
    attack([finished], planned, without)
    assert asked[before:] == ["unlearned", "base"]


def test_a_failed_attack_leaves_the_run_finished(tmp_path, conf, monkeypatch):
    short = ("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={tmp_path}")

    def broken(*_args, **_kwargs):
        raise UserError("made up")

    monkeypatch.setattr("unlearn.attacks.run.attack", broken)
    with pytest.raises(UserError, match="made up"):
        run(conf(*short, "attacks=[shuffled]"))
    [record] = tmp_path.glob("runs/*/run.json")
    assert json.loads(record.read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("overrides", "said"),
    {
        ("attacks=[lense]",): r"attacks=lense is not allowed\. Did you mean 'lens'\?",
        ("attacks=[lens]", "eval=none"): "attacks need something to ask",
        ("attacks=[lens]", "model.device=balanced"): r"attacks with model\.device=balanced: .* on one device only",
    }.items(),
)
def test_attacks_are_checked_at_the_start(conf, overrides, said):
    with pytest.raises(UserError, match=said):
        conf(*overrides)


def test_a_grid_from_the_command_line_is_attacked(tmp_path):
    """In launch.py's own process Hydra is at work already."""
    short = ("train.steps=1", "eval.subset=8", "eval.queries=[default]", "tracker=none", f"output_root={tmp_path}")
    grid = ("-m", "hydra/launcher=packed", "rna.nu=0,0.5", "attacks=[shuffled]")
    command = [sys.executable, str(ROOT / "launch.py"), *grid, *short]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/attacks/shuffled-*.json"))) == 2
