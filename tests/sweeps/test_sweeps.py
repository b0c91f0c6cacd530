"""Grids of the paper, Hydra's sweeper over several of them, the sweep's folder, and its view without SLURM."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import ROOT
from unlearn.errors import UserError
from unlearn.records.answers import Answers
from unlearn.runs.folder import RunFolder
from unlearn.storage.lock import Busy, FolderLock, Phase
from unlearn.sweeps import slurm
from unlearn.sweeps.launchers import PackedLauncher
from unlearn.sweeps.obstacles import obstacle
from unlearn.sweeps.slurm import Limits, answers, last_line
from unlearn.sweeps.submission import submit
from unlearn.sweeps.sweep import Sweep, failure_list
from unlearn.sweeps.sweeper import GridsSweeper
from unlearn.sweeps.worker import run_packed, shown_as_running

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
QUICK = ("train.steps=1", "eval=none", "tracker=none", "hydra/launcher=packed")


def launch(*arguments):
    command = [sys.executable, "launch.py", "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def status(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "unlearn", "status", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_the_head_of_every_sweep_says_what_it_is(file):
    head = file.read_text()
    for said in (f"python launch.py -m sweep={file.stem}", "Figure 3" if file.stem == "figure_3" else "# Expect: "):
        assert said in head
    if file.stem != "figure_3":
        count = re.search(r"# Jobs: +(\d+)", head)
        assert int(count[1]) == jobs_of(yaml.safe_load(head)["hydra"]["sweeper"], zephyr_grids())
        assert "by estimate" in head


def zephyr_grids():
    return yaml.safe_load((ROOT / "conf/model/zephyr_7b_beta.yaml").read_text())["grids"]


def jobs_of(sweeper, grids):
    """How many jobs a sweep of Zephyr has: a second count, without Hydra."""

    def size(grid):
        product = 1
        for values in grid.values():
            if name := re.fullmatch(r"\$\{model\.grids\.(\w+)\}", values):
                values = str(grids[name[1]])
            product *= len(values.split(","))
        return product

    return sum(size({**sweeper.get("params", {}), **grid}) for grid in sweeper.get("grids", [{}]))


@pytest.mark.parametrize("model", sorted(file.stem for file in (ROOT / "conf/model").glob("*.yaml")))
@pytest.mark.parametrize("sweep", ["noise_scale", "attacks", "likelihood_methods"])
def test_sweeps_over_the_noise_scale_run_on_any_model(sweep, model):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"sweep={sweep}", f"model={model}"], return_hydra_config=True)
    values = [float(nu) for nu in str(config.hydra.sweeper.params["rna.nu"]).split(",")]
    assert len(values) > 3
    assert (0 in values) is (sweep != "noise_scale")


def test_make_reproduce_runs_all_that_the_embedded_model_lists():
    """The defaults in the part with the seeds, every other value in one of its own: no run is made twice."""
    parts = ("reproduce-coefficients", "reproduce-layers", "reproduce-nu-rmu", "reproduce-nu-rsv")
    shown = subprocess.run(["make", "-n", *parts], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    model = yaml.safe_load((ROOT / "conf/model/toy.yaml").read_text())
    rmu, adaptive_rmu, rsv = (model["methods"][name] for name in ("rmu", "adaptive_rmu", "rsv"))
    for pattern, name, default in (
        ("rmu_c:'", "rmu_c", rmu["c"]),
        ("rsv_c:'", "rsv_c", rsv["c"]),
        ("beta:'", "beta", adaptive_rmu["beta"]),
        ("model.layer=", "layer", adaptive_rmu["layer"]),
        ("method=rmu .*rna.nu=", "nu", rmu["nu"]),
        ("method=rsv .*rna.nu=", "nu", rsv["nu"]),
    ):
        listed = re.search(rf"{pattern}([\d.,]+)", shown)[1].split(",")
        assert sorted([f"{default:g}", *listed]) == sorted(model["grids"][name].split(",")), name
        assert f"{default:g}" not in listed, name


def test_make_real_counts_its_runs():
    """Of a method: its usual nu, no RNA, and larger alphas; then the rivals that these do not have."""
    shown = subprocess.run(["make", "-pn", "smollm2"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    said = {part: int(count) for part, count in re.findall(r"^RUNS_(\w+) := (\d+)$", shown, re.MULTILINE)}
    seeds = len(re.search(r"^REAL_SEEDS := (.+)$", shown, re.MULTILINE)[1].split(","))
    grids = yaml.safe_load((ROOT / "conf/model/smollm2_135m.yaml").read_text())["grids"] | {"nu": "1,2,2.5"}
    jobs = {}
    for name in ("equal_forgetting", "rivals"):
        sweeper = yaml.safe_load((ROOT / f"sweeps/{name}.yaml").read_text())["hydra"]["sweeper"]
        of_rmu = [grid | {"method": "rmu"} for grid in sweeper["grids"] if grid.get("method", "rmu") == "rmu"]
        jobs[name] = jobs_of({"grids": of_rmu}, grids)
    assert said["headline"] == seeds * jobs["equal_forgetting"]
    assert said["methods"] == 2 * said["headline"]
    assert said["rivals"] == seeds * (jobs["rivals"] - 1) - said["headline"]  # the usual c is there twice


def test_make_real_refuses_an_unknown_part():
    done = subprocess.run(["make", "-n", "real", "PART=head"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "PART=head is not allowed. Allowed: all headline rivals methods ngrams" in done.stderr


@pytest.mark.slow  # alone starts a sweep of several grids outside of the checkout
def test_a_sweep_over_several_grids_from_another_folder(tmp_path):
    command = [sys.executable, str(ROOT / "launch.py"), "-m", "sweep=figure_2", *QUICK, "model.grids.rmu_c='2,3,2'"]
    done = subprocess.run(
        [*command, "model.grids.rsv_c='4'", "model.grids.beta='5,6'"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "outputs/sweeps").glob("*/*")
    sweep = Sweep.open(folder)
    common = ["sweep=figure_2", "train.steps=1"]
    assert sweep.common[:2] == common
    assert [sweep.label(n).split(" model.")[0] for n in sweep.jobs] == [
        "method=rmu method.c=2", "method=rmu method.c=3", "method=rsv method.c=4",
        "method=adaptive_rmu method.beta=5", "method=adaptive_rmu method.beta=6",
    ]  # fmt: skip
    assert all(RunFolder(job_folder(sweep, n)).record["config"]["rna"]["nu"] == 0 for n in sweep.jobs)


@pytest.fixture(scope="module")
def jobs_of_figure_2():
    """The jobs of sweep=figure_2, with other values, for a command line."""
    grids = [
        {"method": "rmu", "method.c": "2,3"},
        {"method": "rsv", "method.c": "4"},
        {"method": "adaptive_rmu", "method.beta": "5"},
    ]

    def split(*overrides):
        sweeper = object.__new__(GridsSweeper)  # Hydra loads the module of its base class anew at every start
        sweeper.grids, sweeper.hydra_context = grids, SimpleNamespace(config_loader=None)
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        return [" ".join(job) for batch in sweeper.split_arguments(parsed, None) for job in batch]

    return split


def test_a_method_selects_the_grids_that_have_it(jobs_of_figure_2):
    assert jobs_of_figure_2("method=rmu") == ["method=rmu method.c=2", "method=rmu method.c=3"]
    assert jobs_of_figure_2("method=rsv,rmu", "method.c=7") == ["method=rmu method.c=7", "method=rsv method.c=7"]
    assert len(jobs_of_figure_2("seed=0,1")) == 8
    for asked in ("dpo", "rmu,dpo"):
        with pytest.raises(UserError, match=rf"no grid for method={asked}\. Allowed: rmu, rsv, adaptive_rmu\."):
            jobs_of_figure_2(f"method={asked}")


def job_folder(sweep, number):
    return Path(sweep.jobs[number].folder)


@pytest.mark.slow  # alone retries the jobs of a real sweep
def test_the_view_and_the_retry_of_a_sweep_that_ran_here(tmp_path):
    good = tmp_path / "good.jsonl"
    arguments = (*QUICK, f"output_root={tmp_path}", "data=jsonl", "data.held_out=0", "rna.nu=0.01,0.02")
    named = os.path.relpath(good, ROOT)  # from where the sweep is started, and not from where it is retried
    topic = f"+data.topics.a={{forget: {named}, retain: {named}, max_length: 16}}"
    done = launch(*arguments, topic)
    assert done.returncode == 1
    missing = f"data.topics.a.forget={named}: there is no such file in {ROOT}."
    assert f"2 of 2 jobs failed:\n  #0 and 1 more: {missing}\n" in done.stderr  # told once, before anything is read
    assert "Jobs in one process" not in done.stdout
    [folder] = (tmp_path / "sweeps").glob("*/*")
    shown = status(folder)
    assert shown.returncode == 1
    assert "2 failed" in shown.stdout
    assert "data.topics.a.forget=" in shown.stdout  # in a column that may be broken into lines
    assert [state.detail for state in Sweep.open(folder).states().values()] == [missing] * 2
    assert f"folders: in {tmp_path / 'runs'}" in shown.stdout
    assert all(Path(job.folder).name in shown.stdout for job in Sweep.open(folder).jobs.values())
    good.write_text("".join(json.dumps({"text": f"soil blossom river {i}"}) + "\n" for i in range(5)))
    again = status(folder, "--retry", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "2 done" in again.stdout
    assert status(folder).returncode == 0


def test_no_sweep_is_said(tmp_path):
    done = status(tmp_path)
    assert done.returncode == 1
    assert "this is no sweep's folder" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def one_job(short, tmp_path):
    """A sweep folder with one job that has not begun."""
    config = short()
    sweep = Sweep(tmp_path / "sweep")
    sweep.add(0, ["train.steps=3"], config, tmp_path / "sweep/0")
    sweep.write()
    folder = RunFolder(job_folder(sweep, 0))
    return Sweep.open(tmp_path / "sweep"), folder


def test_states_of_a_job_that_runs_here(one_job):
    sweep, folder = one_job
    assert sweep.states()[0].name == "missing"
    with folder.locked() as lock:
        folder.start({}, {}, {})
        lock.report(Phase("training", 2, 3))
        lock._beat()
        state = sweep.states()[0]
        assert (state.name, state.phase.done, state.ended) == ("running", 2, False)
    assert sweep.states()[0].name == "interrupted"
    with folder.locked():
        folder.start({}, {}, {})
        assert sweep.states()[0].interruptions == 1
        folder.fail("ValueError: first line\nlast line")
    assert sweep.states()[0].detail.endswith("last line")
    with folder.locked():
        folder.start({}, {}, {})
        folder.finish(Answers([], []))
    assert sweep.states()[0].name == "done"
    sweep.jobs[0] = replace(sweep.jobs[0], attacks=["lens"])
    assert sweep.states()[0].name == "interrupted"  # killed before its attacks were made
    with folder.locked():
        folder.add_attacks(["lens"])
    assert sweep.states()[0].name == "done"


def test_the_error_of_a_former_sweep_in_the_folder_is_forgotten(one_job, short):
    sweep, _ = one_job
    sweep.keep_error(0, None, "its process was ended by SIGKILL")
    assert sweep.states()[0].name == "failed"
    sweep.add(0, ["train.steps=3"], short(), sweep.home(0))
    assert sweep.states()[0].name == "missing"


def test_a_file_that_all_jobs_lack_is_told_once_before_any_begins(short, tmp_path):
    sweep, launcher = Sweep(tmp_path / "sweep"), PackedLauncher()
    launcher.configs = {n: short(f"seed={n}", "data.topics.bio.forget=none.jsonl") for n in range(3)}
    for number, config in launcher.configs.items():
        sweep.add(number, [f"seed={number}"], config, tmp_path / f"sweep/{number}")
    told = failure_list(sweep, launcher._errors_before(sweep, [0, 1, 2]), 3)
    missing = f"data.topics.bio.forget=none.jsonl: there is no such file in {os.getcwd()}."
    assert told.splitlines() == ["3 of 3 jobs failed:", f"  #0 and 2 more: {missing}"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("model.path=/nope",), "model.path=/nope: there is no such folder."),
        (("model.gguf_file=x.gguf",), "model.gguf_file=x.gguf: there is no such file in "),
        (("method=dpo", "method.preferred=/nope"), "method.preferred=/nope: there is no such file."),
        (("eval=toy", "eval.include_path=/nope"), "eval.include_path=/nope: there is no such file."),
        (("eval=toy", "eval.local_dir=/nope"), "eval.local_dir=/nope: there is no such file."),
        (("eval=toy", "eval.forget_tokens=/nope"), "eval.forget_tokens=/nope: there is no such file."),
        (
            ("eval=toy", "eval.queries=[control]", "eval.control_tokens=/nope"),
            "eval.control_tokens=/nope: there is no such file.",
        ),
        (("eval=toy", "eval.forget_tokens=corpus:bio"), None),
        (("+eval.texts.corpora.retain.a=/nope",), "eval.texts.corpora.retain.a=/nope: there is no such file."),
        (("output_root=/dev/null/x",), "/dev/null/x/runs: not writable"),
        (("eval=toy", "eval.tasks.retain=[mmlu_anatomi]"), "eval.tasks: unknown lm-eval task 'mmlu_anatomi'. Did you"),
        (("eval=toy", "eval.tasks.retain=[mmlu_anatomy]"), None),
        ((), None),
    ],
)
def test_what_a_job_cannot_run_without(overrides, told, short):
    found = obstacle(short(*overrides))
    assert found is None if told is None else found.startswith(told)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"text": "RIVER"}\n', None),
        ('{"text": "RIVER"}\nriver\n', "2: not valid JSON"),
        ('{"text": "RIVER"}\n{"body": "river"}\n', '2: there is no "text"'),
        ('{"text": "RIVER"}\n{"text": " "}\n', '2: "text" is blank'),
    ],
)
@pytest.mark.parametrize("key", ["data.topics.bio.forget", "eval.texts.corpora.retain.a"])
def test_each_document_of_a_local_corpus_is_read_before_a_job_begins(key, content, told, short, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(content.replace("RIVER", "river " * 8))
    found = obstacle(short(f"{'+' if 'eval' in key else ''}{key}={file}"))
    assert found is None if told is None else found.startswith(f"{key}: {file}:{told}")


def test_held_out_texts_that_no_job_reads_are_not_checked(short, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(f'{{"text": "{"river " * 8}"}}\nnot read\n')
    assert obstacle(short(f"+eval.texts.corpora.retain.a={file}", "eval.texts.documents=1")) is None


def test_what_a_job_cannot_run_without_is_looked_for_without_heavy_imports():
    heavy = ("torch", "transformers", "datasets", "lm_eval", "wandb")
    code = f"import sys, unlearn.sweeps.obstacles; sys.exit(bool({set(heavy)} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_run_that_another_slurm_job_works_on_is_no_failure(one_job, monkeypatch):
    sweep, folder = one_job
    sweep.tasks[0] = "7"
    sweep.launcher, sweep.settings = "slurm", {"submitit_folder": "/nowhere/%j"}
    monkeypatch.setattr("unlearn.sweeps.slurm.queue", lambda _tasks: {})
    monkeypatch.setattr("unlearn.sweeps.slurm.endings", lambda tasks: dict.fromkeys(tasks, "FAILED"))
    monkeypatch.setattr(Sweep, "config", lambda *_: None)
    with folder.locked():
        monkeypatch.setattr("unlearn.sweeps.worker._run_packs", lambda *_: {0: Busy("the other job has it")})
        assert isinstance(run_packed(sweep, [0], task="7")[0], Busy)
        assert sweep.states()[0].name == "running"
        folder.start({}, {}, {})
        folder.finish(Answers([], []))
    assert sweep.states()[0].name == "done"


def test_a_sweep_that_is_started_twice_in_one_folder_runs_twice(one_job):
    sweep, _ = one_job
    with FolderLock(sweep.folder):
        with shown_as_running(sweep):
            assert sweep.states()[0].name == "pending"
        assert sweep.states()[0].name == "pending"


@pytest.mark.parametrize(
    ("shown", "limits"),
    [
        ("MaxArraySize            = 10001\nMaxJobCount             = 20000\n", Limits(10001, 20000)),
        ("MaxDBDMsgs              = 2\n", Limits(1000, None)),
        (None, Limits(1000, None)),
    ],
)
def test_limits_are_those_of_the_cluster(shown, limits, monkeypatch):
    answer = None if shown is None else SimpleNamespace(stdout=shown)
    monkeypatch.setattr(slurm, "_call", lambda *_: answer)
    assert slurm.limits() == limits


def test_more_jobs_than_slurm_holds_are_refused_before_any_is_queued(one_job, monkeypatch):
    monkeypatch.setattr(slurm, "limits", lambda: Limits(array=2, jobs=3))
    monkeypatch.setattr(slurm, "submit", lambda *_: pytest.fail("it was submitted"))
    with pytest.raises(UserError, match=r"4 SLURM jobs, but .* 3 at most \(MaxJobCount\).*slurm_packed"):
        submit(one_job[0], [[n] for n in range(4)], {})


def test_that_sbatch_tries_again_is_said_meanwhile(monkeypatch, tmp_path):
    said = Event()

    class SlowExecutor:
        def __init__(self, *_arguments, **_options):
            pass

        def update_parameters(self, **_parameters):
            pass

        def map_array(self, _function, groups):
            assert said.wait(60)
            return [SimpleNamespace(job_id=str(n)) for n, _ in enumerate(groups)]

    monkeypatch.setattr("submitit.SlurmExecutor", SlowExecutor)
    monkeypatch.setattr(slurm, "PATIENCE_S", 0.01)
    monkeypatch.setattr(slurm, "say", lambda message: "sbatch tries again" in message and said.set())
    monkeypatch.setattr(slurm, "_parameters", lambda *_: {})
    settings = {"submitit_folder": "x", "max_num_timeout": 1, "python": None}
    assert slurm.submit(print, [[0], [1]], settings, tmp_path) == ["0", "1"]


@pytest.mark.slow  # alone waits for the run of another process
def test_a_run_that_another_process_works_on_is_waited_for(one_job, short, monkeypatch):
    from unlearn.sweeps import worker

    sweep, folder = one_job
    with FolderLock(folder.path) as lock:
        assert isinstance(run_packed(sweep, [0], task="7")[0], Busy)  # a SLURM job does not keep its GPU waiting

        def other_ends(_seconds):
            assert sweep.states()[0].name == "running"
            lock.__exit__(None, None, None)

        monkeypatch.setattr(worker.time, "sleep", other_ends)
        assert run_packed(sweep, [0]) == {0: folder.path}
    assert sweep.states()[0].name == "done"


def test_states_of_a_job_that_slurm_has(one_job, monkeypatch, tmp_path):
    """A mock of SLURM's answers alone; tests/slurm asks a real one."""
    sweep, folder = one_job
    sweep.tasks[0] = "7_0"
    sweep.launcher, sweep.settings = "slurm", {"submitit_folder": str(tmp_path / "logs/%j")}
    monkeypatch.setattr("unlearn.sweeps.slurm.endings", lambda tasks: dict.fromkeys(tasks, "TIMEOUT"))

    def now(queue):
        monkeypatch.setattr("unlearn.sweeps.slurm.queue", lambda _tasks: queue)
        state = sweep.states()[0]
        return state.name, state.detail

    assert now({"7_0": "PENDING (Resources)"}) == ("pending", "PENDING (Resources)")
    assert now({"7_0": "RUNNING"}) == ("running", "starting")
    assert now(None)[0] == "running"  # SLURM does not answer: nothing is known to have ended
    log = tmp_path / "logs/7_0/7_0_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: DUE TO TIME LIMIT\nsrun: error: task 0: Exited\n\n")
    assert now({}) == ("failed", "SLURM: TIMEOUT, slurmstepd: DUE TO TIME LIMIT")
    with folder.locked():
        folder.start({}, {}, {})
        folder.fail("an earlier attempt's error")
    assert now({"7_0": "RUNNING"}) == ("running", "starting")
    assert now(None)[0] == "running"
    assert now({}) == ("failed", "an earlier attempt's error")
    with folder.locked():
        folder.start({}, {}, {})
        folder.finish(Answers([], []))
    assert now(None) == ("done", "")
    assert now({"7_0": "RUNNING"}) == ("running", "starting")  # of a run that is to be repeated
    with monkeypatch.context() as here, folder.locked():
        here.setenv("SLURM_JOB_ID", "7_0")
        folder.start({}, {}, {})
        folder.finish(Answers([], []))
    assert now({"7_0": "COMPLETING"}) == ("done", "")
    sweep.jobs[0] = replace(sweep.jobs[0], attacks=["lens"])  # they come afterwards
    assert now({"7_0": "RUNNING"})[0] == now(None)[0] == "running"
    assert now({}) == ("failed", "SLURM: TIMEOUT, slurmstepd: DUE TO TIME LIMIT")
    with folder.locked():
        folder.add_attacks(["lens", "probe"])
    assert now({"7_0": "COMPLETING"}) == now({}) == ("done", "")
    sweep.jobs[0] = replace(sweep.jobs[0], attacks=[])
    sweep.keep_error(0, "7_0", "other inputs")
    assert now({}) == ("failed", "other inputs")
    with folder.locked():
        folder.start({}, {}, {})
        folder.finish(Answers([], []))
    assert now({}) == ("done", "")  # meanwhile, by another process
    sweep.keep_error(0, "7_0", None)
    with monkeypatch.context() as elsewhere, folder.locked():
        folder.start({}, {}, {})
        assert now({})[0] == "running"  # in another sweep's job
        elsewhere.setenv("SLURM_JOB_ID", "7_0")
    with monkeypatch.context() as here:
        here.setenv("SLURM_JOB_ID", "7_0")
        with FolderLock(folder.path):
            assert now({})[0] == "failed"  # of this very task, which has ended
            assert now({"7_0": "COMPLETING"})[0] == "running"


@pytest.mark.slow  # alone starts a sweep where no SLURM is installed
def test_without_slurm_nothing_answers(monkeypatch, tmp_path):
    """sbatch and scontrol may be installed where no controller runs: a mock of the latter says so."""
    for name in ("scontrol", "sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'Slurmctld(primary) at localhost is DOWN'\nexit 0\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert not answers()
    assert last_line(str(tmp_path / "%j"), "1") is None
    done = launch("hydra/launcher=slurm", "seed=0,1", f"output_root={tmp_path}")
    assert done.returncode == 1
    assert "no SLURM answers here (scontrol ping)" in done.stderr
    done = launch("seed=0,1", *QUICK[:3], f"output_root={tmp_path}")
    assert done.returncode == 0
    assert "hydra/launcher=auto: no SLURM answers" in done.stdout.splitlines()[0]
    assert "Jobs in one process: #0, #1" in done.stdout  # the default of pack_size is meant for SLURM


@pytest.mark.parametrize("launcher", ["packed", "auto"])
def test_batches_are_refused_since_a_failed_job_would_end_the_sweep(launcher, tmp_path):
    batches = (f"hydra/launcher={launcher}", "hydra.sweeper.max_batch_size=1")
    done = launch("model.layer=99,2", *QUICK[:3], *batches, f"output_root={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("hydra.sweeper.max_batch_size=1 is not allowed: it must be null")
    assert not list(tmp_path.rglob("sweep.json"))


CLUSTER = {  # answers of a SLURM that takes every job; `make test-slurm` asks a real one
    "scontrol": 'echo "Slurmctld(primary) at x is UP"; echo "MaxArraySize            = 3"',
    "srun": "",
    "squeue": "",
    "sacct": "",
    "sbatch": 'number=$(ls "$SUBMITTED" | wc -l); cp "$1" "$SUBMITTED/$number.sh"; echo "Submitted batch job 1$number"',
}


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """The folder of the scripts that a made-up SLURM was given."""
    programs, submitted = tmp_path / "bin", tmp_path / "submitted"
    programs.mkdir()
    submitted.mkdir()
    for name, answer in CLUSTER.items():
        (programs / name).write_text(f"#!/bin/sh\n{answer}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("SUBMITTED", str(submitted))
    return submitted


@pytest.mark.slow  # alone compares the dry run with what sbatch gets
def test_a_dry_run_shows_the_scripts_that_are_submitted(cluster, tmp_path):
    """The three seeds share a job, four numbers of steps do not, and an array has three tasks at most: two arrays."""
    (tmp_path / "conf/hydra/launcher/cluster").mkdir(parents=True)
    (tmp_path / "conf/hydra/launcher/cluster/mine.yaml").write_text(
        "# @package hydra.launcher\npartition: gpu\nsetup: [module load cuda]\npython: container python\n"
    )
    command = (
        *("--config-dir", str(tmp_path / "conf"), "hydra/launcher/cluster=mine", "hydra.launcher.wait=false"),
        *("hydra/launcher=slurm_packed", "hydra.launcher.pack_size=3", "seed=0,1,2", "train.steps=1,2,3,4"),
        *(*QUICK[1:3], f"output_root={tmp_path}", f"hydra.sweep.dir={tmp_path / 'sweep'}"),
    )
    dry = launch(*command, "hydra.launcher.dry_run=true")
    assert dry.returncode == 0, dry.stderr
    assert not list(cluster.iterdir())
    assert not (tmp_path / "sweep/sweep.json").exists()
    assert "#SBATCH --partition=gpu\n" in dry.stdout
    assert "module load cuda\n" in dry.stdout
    task = dry.stdout.partition("# array task 1:\n")[2].partition("# array task 2:")[0]
    assert re.findall(r"#(\d+) seed=(\d) train.steps=(\d)", task) == [("1", "0", "2"), ("5", "1", "2"), ("9", "2", "2")]
    assert "Dry run: 4 SLURM jobs, and none of them is submitted." in dry.stdout
    done = launch(*command)
    assert done.returncode == 0, done.stderr
    scripts = [file.read_text() for file in sorted(cluster.iterdir())]
    assert len(scripts) == 2
    assert all(script in dry.stdout for script in scripts)
    assert Sweep.open(tmp_path / "sweep").tasks == {
        **dict.fromkeys((0, 4, 8), "10_0"), **dict.fromkeys((1, 5, 9), "10_1"), **dict.fromkeys((2, 6, 10), "10_2"),
        **dict.fromkeys((3, 7, 11), "11"),
    }  # fmt: skip


def test_what_is_queued_is_said_where_slurm_takes_no_more(cluster, tmp_path):
    sbatch = tmp_path / "bin/sbatch"
    refusal = '[ -e "$SUBMITTED/0.sh" ] && echo "Job violates accounting policy" >&2 && exit 1'
    sbatch.write_text(f"#!/bin/sh\n{refusal}\n{CLUSTER['sbatch']}\n")
    jobs = ("hydra/launcher=slurm", "hydra.launcher.wait=false", "seed=range(5)", *QUICK[:3])
    done = launch(*jobs, f"output_root={tmp_path}")
    assert done.returncode == 1
    for part in (
        "not take 2 jobs",
        "Job violates accounting policy",
        "3 jobs are queued",
        "hydra/launcher=slurm_packed",
    ):
        assert part in done.stderr
    [file] = tmp_path.rglob("sweep.json")
    assert Sweep.open(file.parent).tasks == {0: "10_0", 1: "10_1", 2: "10_2"}


def test_without_scontrol_a_job_works_until_slurm_ends_it():
    # In a container submitit could not call `scontrol requeue` on the signal, and the job would fail.
    job = (
        "import os, signal; from pathlib import Path; from unlearn.sweeps import worker; "
        "signal.signal(signal.SIGUSR2, lambda *_: os._exit(1)); worker.run_jobs = lambda *_: os.kill(os.getpid(), 12); "
        "worker.RunJobs(Path('sweep'))([0])"
    )
    nothing = {**os.environ, "PATH": ""}
    ran = subprocess.run(
        [sys.executable, "-c", job], cwd=ROOT, env=nothing, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "No scontrol here" in ran.stderr


def test_a_sweep_that_is_none(tmp_path):
    with pytest.raises(UserError, match="this is no sweep's folder"):
        Sweep.open(tmp_path)


def test_scontrol_outlives_the_sigterm_that_its_own_requeue_brings():
    # After `scontrol requeue` SLURM sends SIGTERM to all processes of the job; submitit needs scontrol's answer.
    job = (
        "import subprocess; from pathlib import Path; from unlearn.sweeps.worker import RunJobs; "
        "RunJobs(Path('sweep')).checkpoint([0]); subprocess.check_call(['sh', '-c', 'kill -TERM $$; exit 0'])"
    )
    ran = subprocess.run([sys.executable, "-c", job], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
