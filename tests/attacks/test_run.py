"""`unlearn attack`: plans, the files it leaves, going on after an interruption, the table."""

import json

import pytest

from unlearn.attacks import run as running
from unlearn.attacks.make import plan
from unlearn.attacks.run import attack
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.experiment import run

BAD = {
    ("pruning", "attack.levels=[1.5]"): r"attack\.levels=\[1\.5\] is not allowed: .* above 0 and below 1",
    ("pruning", "attack.levels=0.3"): r"attack\.levels=0\.3 is not allowed: it must be a list",
    ("rounding", "attack.levels=[]"): "integers from 2 to 16",
    ("rounding", "attack.levels=[4.5]"): "integers from 2 to 16",
    ("relearning", "attack.parameters=lora"): r"attack\.parameters=lora is not allowed\. Allowed: span, whole",
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


def test_all_attacks_of_the_folder_are_planned():
    assert [p.name for p in plan(["all"], [])] == ["noise", "projection", "pruning", "relearning", "rounding"]
    with pytest.raises(UserError, match=r"attack=nois: unknown\. Did you mean 'noise'\?"):
        plan(["nois"], [])
    with pytest.raises(UserError, match="goes with one attack"):
        plan(["noise", "pruning"], ["attack.levels=[1]"])


def test_results_are_kept_after_each_stage_and_not_asked_again(finished, monkeypatch, capsys):
    asked = []
    real = running.evaluate

    def broken(*args, label, **kwargs):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(label)
        return real(*args, label=label, **kwargs)

    planned = plan(["rounding"], ["attack.levels=[6,3]"])
    monkeypatch.setattr(running, "evaluate", broken)
    with pytest.raises(KeyboardInterrupt):
        attack([finished], planned, [])
    [file] = (finished / "attacks").glob("rounding-*.json")
    assert list(json.loads(file.read_text())["stages"]) == ["6"]
    monkeypatch.setattr(running, "evaluate", lambda *a, label, **k: asked.append(label) or real(*a, label=label, **k))
    attack([finished], planned, [])
    assert asked == ["unlearned", "base", "unlearned", "unlearned", "base", "base"]
    attack([finished], planned, [])
    assert len(asked) == 6
    record = json.loads(file.read_text())
    assert set(record["stages"]) == {"6", "3"}
    assert record["config"] == {"target": "unlearn.attacks.weights.Rounding", "levels": [6, 3]}
    assert record["stages"]["3"]["unlearned/toy_retain/perturbed/acc"] >= 0
    rows = [line.split() for line in capsys.readouterr().err.splitlines() if line.split()[:2] == ["rounding", "3"]]
    assert [row[2] for row in rows[-2:]] == ["unlearned", "base"]
    assert all(len(row) == 9 for row in rows)  # three roles, default and perturbed
    metrics = json.loads((finished / "metrics.json").read_text())
    [untouched] = (finished / "attacks").glob("none-*.json")
    found = json.loads(untouched.read_text())["stages"]["0"]
    assert {name: metrics[name] for name in found} == found  # without an attack, what the run's own evaluation found


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
