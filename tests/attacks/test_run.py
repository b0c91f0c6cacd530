"""`unlearn attack`: plans, the files it leaves, going on after an interruption, the table."""

import json
import shutil
import subprocess
import sys
from itertools import product

import pytest
import torch

from tests.conftest import ROOT
from unlearn.attacks import attack as measuring
from unlearn.attacks.make import plan
from unlearn.attacks.results import AttackResults
from unlearn.attacks.run import attack
from unlearn.attacks.table import QUERIES, nothing_forgotten, problem, show
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.experiment import run, run_together
from unlearn.models.loading import Source, load_whole
from unlearn.records.attacks import HALVES, AttackAbout, AttackScore, attack_frame, read_attack
from unlearn.records.scores import Score, read_scores
from unlearn.screen import PlainConsole

TOY = str(ROOT / "unlearn/toy/model")
BAD = {
    ("pruning", "attack.levels=[1.5]"): r"attack\.levels=\[1\.5\] is not allowed: .* above 0 and below 1",
    ("pruning", "attack.levels=0.3"): r"attack\.levels=0\.3 is not allowed: it must be a list",
    ("pruning", "attack.levels=[]"): r"attack\.levels=\[\] is not allowed",
    ("quantization", "attack.levels=[3]"): "list of 8 and 4",
    ("quantization", "attack.four_bits=nf5"): "Did you mean 'nf4'",
    (
        "relearning",
        "attack.parameters=head",
    ): r"parameters=head is not allowed\. Allowed: span, whole, all, lora",
    ("relearning", "attack.rank=0"): r"attack\.rank=0",
    ("lens", "attack.levels=[1.5]"): "layers, integers from 0",
    ("probe", "attack.levels=[-1]"): "layers, integers from 0",
    ("relearning", "attack.documents=0"): r"attack\.documents=0",
    ("relearning", "attack.documents=2.5"): r"attack\.documents=2\.5 is not allowed: it must be an integer above 0",
    ("relearning", "attack.lr=fast"): r"attack\.lr=fast is not allowed: it must be a number above 0",
    ("relearning", "attack.texts=3"): r"attack\.texts=3 is not allowed",
    ("pruning", "+attack.level=[1]"): r"attack\.level: unknown key\. Did you mean 'levels'\?",
    ("pruning", "attack._target_=os.system"): r"must name an attack below unlearn\.attacks",
    ("pruning", "attack._target_=unlearn.attacks.make.Planned"): r"must name an attack below unlearn\.attacks",
    ("pruning", "attack._target_=unlearn.attacks.prune.Pruning"): r"must name an attack below unlearn\.attacks",
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
    targets = []
    monkeypatch.setattr("unlearn.attacks.run.Measurement.make", lambda self, _: targets.append(self.target))
    monkeypatch.setattr("unlearn.attacks.run.show", lambda *_: None)
    folder = run(short("data.use=[bio]", "train.steps=2", "eval=toy", "eval.subset=4", "eval.queries=[default]"))
    attack([folder], plan(["relearning"], []), [])
    assert [list(target.unlearning.corpora) for target in targets] == [["bio"]] * 4


def test_all_attacks_of_the_folder_are_planned():
    files = sorted((ROOT / "conf/attack").glob("*.yaml"))
    names = [file.stem for file in files if "published:" not in file.read_text()]
    assert [p.name for p in plan(["all"], [])] == names
    assert len(names) > 5
    with pytest.raises(UserError, match=r"attack=prunning: unknown\. Did you mean 'pruning'\?"):
        plan(["prunning"], [])
    with pytest.raises(UserError, match="goes with one attack"):
        plan(["probe", "pruning"], ["attack.levels=[1]"])


def test_a_list_for_one_value_makes_an_attack_for_each():
    planned = plan(["relearning"], ["attack.lr=[1e-4,1e-3]", "attack.levels=[5]", "attack.parameters=[span,whole]"])
    made = [(p.attack.lr, p.attack.parameters, p.arguments["lr"]) for p in planned]
    assert made == [(1e-4, "span", 1e-4), (1e-3, "span", 1e-3), (1e-4, "whole", 1e-4), (1e-3, "whole", 1e-3)]
    with pytest.raises(UserError, match=r"attack\.lr: an empty list is not allowed"):
        plan(["relearning"], ["attack.lr=[]"])


@pytest.mark.slow  # alone interrupts an attack between two levels
def test_results_are_kept_after_each_stage_and_not_asked_again(finished, monkeypatch, capsys):
    asked = []
    real = measuring.evaluate

    def broken(*args, label, **kwargs):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(label)
        return real(*args, label=label, **kwargs)

    planned = plan(["pruning"], ["attack.levels=[0.1,0.5]"])
    monkeypatch.setattr(measuring, "evaluate", broken)
    with pytest.raises(KeyboardInterrupt):
        attack([finished], planned, [])
    [folder] = (finished / "attacks").glob("pruning-*")
    assert {row.level for row in read_attack(folder)[1]} == {0.1}
    monkeypatch.setattr(measuring, "evaluate", lambda *a, label, **k: asked.append(label) or real(*a, label=label, **k))
    capsys.readouterr()
    attack([finished], planned, [])
    assert asked == ["unlearned", "base", "unlearned", "unlearned", "base", "base"]
    said = capsys.readouterr().err
    assert "1 attacks, 2 levels" in said
    assert "6 measurements of the unlearned, base models. 3 of them have been made before" in said
    assert "pruning, unlearned model: level 2 of 2, 50% of weights (1 of 3)" in said
    assert "pruning, base model: level 2 of 2, 50% of weights (3 of 3, about" in said
    attack([finished], planned, [])
    assert len(asked) == 6
    about, rows = read_attack(folder)
    assert about.attack == "pruning"
    assert about.arguments == {"levels": [0.1, 0.5]}
    assert {(row.level, row.score.model) for row in rows} == set(product((0.1, 0.5), ("unlearned", "base")))
    assert "Nothing was forgotten" in said  # two steps
    [of_none] = (finished / "attacks").glob("none-*")
    scores = [row.score for row in read_attack(of_none)[1] if row.score.model == "unlearned"]
    without_attack = [score for score in scores if score.part_of != HALVES]
    halves = {(score.role, score.task) for score in scores if score.part_of == HALVES}
    assert halves == set(product(("retain", "near", "forget"), ("half 0", "half 1")))
    own = [score for score in read_scores(finished) if score.model == "unlearned" and score.against != "base"]
    asked_of = [score for score in own if score.measure in ("acc", "acc_norm") and score.query in QUERIES]
    assert [score for score in without_attack if score.measure in ("acc", "acc_norm")] == asked_of


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

    def rows(model, *values):
        measured = (("forget", "bio", "acc"), ("forget_text", "papers", "nats"))
        return [
            AttackScore("none", 0, "-", Score(model, role, task, None, "default", measure, value))
            for (role, task, measure), value in zip(measured, values, strict=True)
            if value is not None
        ]

    both = rows("unlearned", accuracy, nats) + rows("base", accuracy and 0.98, nats and 3.0)
    results = AttackResults(tmp_path, AttackAbout("none", "q"), both)
    assert nothing_forgotten(results) is nothing


@pytest.mark.parametrize("width", [80, 300])
def test_the_table_fits_the_terminal_and_begins_with_what_was_to_be_forgotten(tmp_path, monkeypatch, capsys, width):
    monkeypatch.setattr("unlearn.attacks.table.console", PlainConsole(stderr=True, width=width))
    roles = ("retain", "near", "forget", "retain_text", "forget_text")
    scores = [
        Score(model, role, f"of_{role}", None, query, "nats" if role.endswith("text") else "acc", 0.5)
        for model, role, query in product(("unlearned", "base"), roles, ("default", "perturbed"))
    ]
    rows = [AttackScore("relearning_unrelated", n, f"{n} steps", score) for n in (5, 100) for score in scores]
    show("RUN", [AttackResults(tmp_path, AttackAbout("relearning_unrelated", "q"), rows)])
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines[:7])) <= width
    assert [line.split()[:6] for line in lines if "100 steps" in line] == [
        ["relearning_unrelated", "100", "steps", "50.0", "50.0", "0.50"]
    ]
    header = " ".join(lines[:4])
    assert header.index("forget %") < header.index("forget_text nats")
    assert ("near" in header) is (width == 300)
    assert any("more columns do not fit" in line for line in lines) is (width == 80)


def test_a_level_without_finite_answers_is_shown_and_named(tmp_path, capsys):
    def rows(level, measure, value):
        places = (("forget", "bio", "acc"), ("forget_text", "papers", "nats"))
        return [
            AttackScore("pruning", level, f"{level} %", Score("unlearned", role, task, None, "default", m, value, n=9))
            for role, task, m in ((r, t, measure or m) for r, t, m in places)
        ]

    results = [AttackResults(tmp_path, AttackAbout("pruning", "q"), rows(10, None, 0.5) + rows(90, "not_finite", 4.0))]
    show("RUN", results)
    lines = capsys.readouterr().err.splitlines()
    [line] = [line for line in lines if "90 %" in line]
    assert line.split() == ["pruning", "90", "%", "NaN", "NaN"]
    assert any(line.startswith("NaN: answers that are not finite") for line in lines)
    assert problem(results[:0]) is None
    assert problem(results).startswith("pruning, 90 %: Answers that are NaN or infinite give no figure.")


def test_an_attack_after_which_nothing_is_finite_ends_with_status_1(finished, monkeypatch, capsys):
    monkeypatch.setattr("unlearn.attacks.pruning.pruned", lambda w_OI, _fraction: w_OI * torch.nan)
    with pytest.raises(SystemExit, match=r"pruning, 20% of weights: Answers that are NaN or infinite") as stop:
        main(["attack", str(finished), "attack=pruning", "attack.levels=[0.2]", "eval.subset=2"])
    assert "\n" not in str(stop.value)
    assert "NaN" in capsys.readouterr().err


@pytest.mark.slow  # alone attacks several runs in one process
def test_runs_that_share_a_model_load_it_once_and_find_it_as_it_was(finished, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr("unlearn.attacks.run.load_whole", lambda source: loaded.append(source) or load_whole(source))
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("attacks"))
    planned = plan(["pruning"], ["attack.levels=[0.3]"]) + plan(["relearning"], ["attack.levels=[2]"])
    attack(folders, planned, ["eval=toy", "eval.limit=10"])
    assert len(loaded) == 1
    files = sorted(file.name for file in (folders[0] / "attacks").iterdir())
    assert len(files) == 3
    for name in files:
        a, b = (read_attack(folder / "attacks" / name) for folder in folders)
        assert a == b


@pytest.mark.slow  # alone attacks a retrained model
def test_a_retrained_model_is_attacked_too(finished, tmp_path, capsys):
    folder, retrained = tmp_path / "run", tmp_path / "retrained"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("attacks"))
    shutil.copytree(TOY, retrained)
    model = load_whole(Source(TOY))
    model.model.embed_tokens.weight.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(retrained)
    planned = plan(["pruning"], ["attack.levels=[0.3]"]) + plan(["relearning"], ["attack.levels=[2]"])
    planned += plan(["probe"], ["attack.levels=[7]"])
    limits = ["eval=toy", "eval.limit=10"]
    attack([folder], planned, limits, retrained=str(retrained))
    assert "retrained" in capsys.readouterr().err
    frame = attack_frame(folder)
    assert set(frame["attack"]) == {"none", "pruning", "relearning", "probe"}
    of_probe = frame[(frame["attack"] == "probe") & (frame["role"] == "forget") & (frame["measure"] == "acc")]
    assert set(of_probe["model"]) == {"unlearned", "base", "retrained"}
    assert set(frame.loc[frame["attack"] == "relearning", "attack.lr"]) == {1e-4}
    retain = (frame["task"] == "toy_retain") & (frame["query"] == "default") & (frame["measure"] == "acc")
    by = frame[retain & frame["against"].isna()].set_index(["attack", "model"])["value"]
    assert by["none", "retrained"] < 0.6 < by["none", "base"]
    assert {("pruning", "retrained"), ("relearning", "retrained")} < set(by.index)
    attack([folder], planned, limits, retrained=str(retrained))  # nothing is measured again ...
    attack([folder], planned, limits)  # ... or lost
    assert "Evaluating" not in capsys.readouterr().err
    assert attack_frame(folder).equals(frame)
    with pytest.raises(UserError, match=r"--retrained /nope: .*: there is no such folder"):
        attack([folder], planned, limits, retrained="/nope")
    config = json.loads((retrained / "config.json").read_text())
    (retrained / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 7}))
    with pytest.raises(UserError, match=r"--retrained .*: its num_hidden_layers is 7, the base model's 8\."):
        attack([folder], planned, limits, retrained=str(retrained))


def test_the_attacked_run_must_be_finished_and_keeps_its_training(finished, tmp_path):
    planned = plan(["pruning"], [])
    with pytest.raises(UserError, match="no finished run"):
        attack([tmp_path], planned, [])
    with pytest.raises(UserError, match=r"method=rsv is not allowed: .* only eval"):
        attack([finished], planned, ["method=rsv"])


def test_a_command_without_a_run_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main(["attack", "attack=pruning"])
    assert end.value.code == 2
    assert "folder of a finished run" in capsys.readouterr().err


def test_a_run_whose_folder_has_an_equals_sign_in_its_path_is_attacked(finished, tmp_path):
    folder = tmp_path / "nu=0.5"
    shutil.copytree(finished, folder)
    main(["attack", str(folder), "attack=pruning", "eval.subset=4", "eval.queries=[default]"])
    assert any((folder / "attacks").glob("pruning-*"))


@pytest.mark.slow  # alone makes the attacks that a configuration names
def test_a_run_makes_the_attacks_of_its_configuration_and_keeps_its_name(tmp_path, conf):
    short = ("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={tmp_path}")
    folder = run(conf(*short, "attacks=[projection]"))
    assert folder == run(conf(*short))
    [of_projection] = (folder / "attacks").glob("projection-*")
    rows = read_attack(of_projection)
    assert {(row.level, row.level_name) for row in rows[1]} == {(1, "-")}
    run(conf(*short, "attacks=[projection,pruning]"))  # the finished run is attacked further
    assert any((folder / "attacks").glob("pruning-*"))
    assert json.loads((folder / "run.json").read_text())["attacked"] == ["projection", "pruning"]
    assert read_attack(of_projection) == rows


@pytest.mark.slow  # alone has points that differ in their attacks only
def test_points_of_a_grid_that_differ_in_their_attacks_are_one_run_with_all_of_them(tmp_path, conf):
    short = ("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={tmp_path}")
    a, b = run_together([conf(*short, f"attacks=[{name}]") for name in ("projection", "pruning")])
    assert (a.folder, a.error) == (b.folder, b.error) == (a.folder, None)
    assert json.loads((a.folder / "run.json").read_text())["attacked"] == ["projection", "pruning"]
    assert {file.name.partition("-")[0] for file in (a.folder / "attacks").iterdir()} == {
        "none",
        "projection",
        "pruning",
    }


def test_an_attack_that_a_run_does_not_allow_is_left_out_and_the_run_is_done(tmp_path, conf, capsys):
    """In a grid over methods the others have it. A command for this attack alone is refused."""
    short = ("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={tmp_path}")
    folder = run(conf(*short, "method=grad_diff", "attacks=[projection]"))
    assert "Left out: attack=projection: this run's delta has no control vectors" in capsys.readouterr().err
    assert json.loads((folder / "run.json").read_text())["attacked"] == ["projection"]
    with pytest.raises(UserError, match="attack=projection: this run's delta"):
        attack([folder], plan(["projection"], []), [])


def test_a_failed_attack_leaves_the_run_finished(tmp_path, conf, monkeypatch):
    short = ("train.steps=2", "eval=toy", "eval.subset=12", "tracker=none", f"output_root={tmp_path}")

    def broken(*_args, **_kwargs):
        raise UserError("made up")

    monkeypatch.setattr("unlearn.attacks.run.attack", broken)
    with pytest.raises(UserError, match="made up"):
        run(conf(*short, "attacks=[projection]"))
    [record] = tmp_path.glob("runs/*/run.json")
    assert json.loads(record.read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("overrides", "said"),
    {
        ("attacks=[lense]",): r"attacks=lense is not allowed\. Did you mean 'lens'\?",
        ("attacks=[lens]", "eval=none"): "attacks need an evaluation",
        ("attacks=[lens]", "model.device=balanced"): r"attacks need the model on one device, and model\.device=bal",
    }.items(),
)
def test_attacks_are_checked_at_the_start(conf, overrides, said):
    with pytest.raises(UserError, match=said):
        conf(*overrides)


@pytest.mark.slow  # alone attacks a grid from the command line
def test_a_grid_from_the_command_line_is_attacked(tmp_path):
    """In launch.py's own process Hydra is at work already."""
    short = ("train.steps=1", "eval.subset=8", "eval.queries=[default]", "tracker=none", f"output_root={tmp_path}")
    grid = ("-m", "hydra/launcher=packed", "rna.nu=0,0.5", "attacks=[projection]")
    command = [sys.executable, str(ROOT / "launch.py"), *grid, *short]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/attacks/projection-*"))) == 2
