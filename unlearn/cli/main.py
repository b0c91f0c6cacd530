"""The command `unlearn`: start runs, and evaluate, attack, compare and report them.

Each command imports what it needs when it is called, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unlearn.cli.importing import without_garbage_collection
from unlearn.errors import GOES_ON, INTERRUPTED, UserError
from unlearn.screen import accept_every_letter, plain

app = typer.Typer(
    help="Run, evaluate, attack, compare and report unlearning of language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Let code run that the folder names: tasks, or a checkpoint's own code.")
]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR", help="A run, a sweep, or a folder of runs or sweeps.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="OVERRIDE", help="As for launch.py: eval=NAME, KEY=VALUE.")
]


class Format(StrEnum):
    """The format of a report."""

    html = "html"
    md = "md"
    latex = "latex"
    csv = "csv"


@app.command(
    options_metavar="[-m]",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def run(context: typer.Context) -> None:
    """Start a run, or with -m a sweep.

    KEY=VALUE sets a key of the configuration; `unlearn run --help` lists them. In a checkout, `python launch.py` does
    the same.
    """
    from unlearn.cli.launch import launch

    sys.argv = ["unlearn run", *context.args]  # where Hydra reads the command line
    launch()


@app.command()
def evaluate(
    what: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|model=NAME")],
    overrides: Overrides = None,
    allow_code: AllowCode = False,
) -> None:
    """Evaluate a finished run again, or any checkpoint.

    RUN is a run's folder. eval=NAME chooses the evaluation (default: the run's own), and eval.KEY=VALUE changes one of
    its keys. Set model.path=PATH if the base model was moved, output_root=DIR if the run was (the base model's answers
    are cached there), and model.device=DEVICE to use another device. Results go to RUN/evaluations/. CHECKPOINT is a
    folder or a hub id, and NAME is a file of conf/model; both are evaluated as base models.
    """
    with without_garbage_collection():
        from unlearn.runs.evaluation import evaluate as run

    run(what, overrides or [], allow_code=allow_code)


@app.command()
def adopt(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder, a hub id, a GGUF file, or a PEFT adapter.")
    ],
    base: Annotated[
        str, typer.Option(metavar="BASE", help="The model that was unlearned: as CHECKPOINT, or model=NAME.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="OVERRIDE", help="What is known: method=rmu method.c=6.5, data=NAME.")
    ] = None,
) -> None:
    """Make a run of an unlearned checkpoint and its base.

    Nothing is trained. It says in which parameters the two differ and by how much, and writes the difference as a
    run's delta. Evaluate, attack, compare, report and export then work on the folder. What is known of the unlearning
    is given as for a run: method=NAME, method.KEY=VALUE, rna.nu=NU, train.KEY=VALUE, loss.alpha=ALPHA, model.layer=L,
    seed=N. The rest is recorded as unknown. data=NAME names the texts for attacks, and eval=NAME makes an evaluation at
    once. docs/audit.md has commands for public checkpoints.
    """
    with without_garbage_collection():
        from unlearn.runs.adoption import adopt as run

    typer.echo(run(checkpoint, base, overrides or []))


@app.command()
def attack(
    arguments: Annotated[list[str], typer.Argument(metavar="RUN... [attack=NAME,...] [OVERRIDE...]")],
    retrained: Annotated[
        str | None, typer.Option(help="A checkpoint like the base model that never saw the forget texts in training.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Attack finished runs: does what was forgotten come back?

    An attack of conf/attack (docs/attacks.md lists them; the default is attack=all) changes the unlearned model or
    reads its states, at several levels. The base model, and the --retrained model if given, are attacked too, for
    comparison. Each level repeats the run's evaluation, or eval=NAME, with default and perturbed queries: 300 questions
    per role, or eval.subset=N (null: all). attack.KEY=VALUE changes a key of a single attack. model.path and
    model.device are as in `unlearn evaluate`. Results go to RUN/attacks; existing results are not measured again.
    """
    from unlearn.cli.arguments import attack_arguments

    parsed = attack_arguments(arguments)
    if not parsed.folders:
        raise typer.BadParameter("give the folder of a finished run.")
    with without_garbage_collection():
        from unlearn.attacks.make import plan
        from unlearn.attacks.run import attack as run

    attacks = plan(parsed.attacks, parsed.attack_overrides)
    run(parsed.folders, attacks, parsed.overrides, retrained=retrained, allow_code=allow_code)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A")], b: Annotated[Path, typer.Argument(metavar="RUN_B")]
) -> None:
    """Compare two runs question by question.

    Prints, for each task and query, the difference in accuracy (B minus A), its 95 % interval, and McNemar's test.
    """
    from unlearn.analysis.compare import show_comparison

    show_comparison(a, b)


@app.command()
def report(
    folders: Folders,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: report.html for the page, the terminal for a table.")
    ] = None,
    format: Annotated[Format, typer.Option(help="html: the page; others: one table.")] = Format.html,  # noqa: A002
    table: Annotated[
        str | None,
        typer.Option(
            help="For md, latex and csv: settings, contrasts, words, table_1, runs, scores or unusable; with --paper "
            "also published and published_table_1.",
            show_default="settings",
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write each figure to DIR, as PDF, PNG and CSV.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Add the paper's published numbers and its phases of nu.")
    ] = False,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Unlearning report",
) -> None:
    """Write figures and tables of any runs.

    The report is an HTML page with the paper's figures and tables, or one table in Markdown, LaTeX or CSV.
    """
    if format is Format.html and table is not None:
        raise typer.BadParameter("--table needs --format md, latex or csv; the HTML page has all tables.")
    from unlearn.analysis.report.write import Additions, write_report

    additions = Additions()
    if paper:
        from unlearn.paper.additions import ADDITIONS as additions
    write_report(
        folders, output, format=format.value, table=table, figures_dir=figures, title=title, additions=additions
    )


@app.command()
def claims(
    folders: Folders,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: the terminal.")] = None,
    theory: Annotated[
        bool, typer.Option("--theory", help="First run `unlearn theory` on one seed of each method.")
    ] = False,
    terms: Annotated[
        bool, typer.Option("--terms", help="First measure, by the base model, what the inserted words are like.")
    ] = False,
    limit: Annotated[int, typer.Option(min=2, help="Number of questions for --theory.")] = 100,
    title: Annotated[str, typer.Option(help="Title of the document.")] = "The paper's claims",
    preface: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown to put first, for example what was run and why.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Judge the paper's claims on any runs.

    Each claim gets a verdict with its numbers. For each method and at least two seeds it needs: a run without RNA, runs
    that differ from it only in nu, and runs without RNA that differ from it only in c or beta, or only in the layer
    (sweep=figure_2, figure_3, layers). The other claims need sweep=seeds eval=paper.
    """
    from unlearn.paper.claims.write import write_claims

    write_claims(
        folders, output, theory=theory, terms=terms, limit=limit, title=title, preface=preface, allow_code=allow_code
    )


@app.command()
def theory(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    against: Annotated[
        Path | None, typer.Option(metavar="RM_RUN", help="The corresponding run without RNA (rna.nu=0).")
    ] = None,
    limit: Annotated[int, typer.Option(min=2, help="Number of questions, in proportion to the tasks' sizes.")] = 200,
    draws: Annotated[int, typer.Option(min=2, help="Draws of noise per question and variance.")] = 64,
    directions: Annotated[int, typer.Option(min=2, help="Directions along which spreads are measured.")] = 32,
    batch: Annotated[int, typer.Option(min=2, help="Noisy copies of a token in memory at a time.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of noise and directions.")] = 0,
    injected: Annotated[
        bool, typer.Option(help="Measure Theorems 4.3 and 5.2 with injected noise, which takes nearly all the time.")
    ] = True,
    allow_code: AllowCode = False,
) -> None:
    """Measure the paper's theorems on a finished run.

    It measures Assumptions 4.2 and 5.1 and Theorems 4.3 and 5.2, and prints a verdict on each. All numbers go to
    RUN/theory.json. The questions are perturbed ones about retained knowledge. The model runs in float32, one
    question at a time.
    """
    from unlearn.paper.theory.measure import Effort, show
    from unlearn.paper.theory.measure import theory as measure

    effort = Effort(limit, draws, directions, batch, seed)
    show(measure(folder, against, effort=effort, injected=injected, allow_code=allow_code))


@app.command()
def status(
    sweep: Annotated[
        Path | None, typer.Argument(metavar="SWEEP", help="Default: the latest sweep in outputs/.")
    ] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="First restart the jobs that failed or were interrupted.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Show the table once, even in a terminal.")] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="With --retry: run the code and commands in the sweep's folder.")
    ] = False,
) -> None:
    """Show the jobs of a sweep, or retry them.

    In a terminal the table is updated until all jobs have ended. A retry uses the configuration and the code with which
    the sweep was started (the current code if the sweep ran in the launcher's own process). Exit status: 0 all done,
    1 some failed, 3 not finished.
    """
    from unlearn.sweeps.status import show_status

    raise typer.Exit(show_status(sweep, retry_failed=retry, once=once, allow_code=allow_code))


@app.command()
def best(
    search: Annotated[Path, typer.Argument(metavar="SEARCH", help="A search's folder: outputs/searches/NAME.")],
    where: Annotated[
        list[str] | None, typer.Option(metavar="NAME<NUMBER", help="A further bound, e.g. 'retain_text<0.05'.")
    ] = None,
) -> None:
    """Print the best point of a search as a file for conf/model.

    The first objective decides among the trials that keep all bounds. The file says how the point was found.
    """
    from unlearn.sweeps.search.best import best_as_yaml

    typer.echo(best_as_yaml(search, where or []), nl=False)


@app.command()
def equal_effort(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `make equal-effort` filled.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: the terminal.")] = None,
) -> None:
    """Compare methods by the best of equally many trials of each.

    The best trial of each search below the folder is shown with the figures that chose it, and with those of its runs
    on other items and seeds.
    """
    from unlearn.paper.equal_effort import write_equal_effort

    write_equal_effort(folder, output)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder: outputs/runs/NAME-HASH.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="The folder to write; it must be new or empty.")],
    model: Annotated[
        str | None, typer.Option(metavar="PATH", help="The base model's current path, if it was moved.")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Write a run's unlearned model as a Hugging Face checkpoint."""
    from unlearn.models.export import export as write

    write(run, out, model, trust_remote_code=allow_code)
    typer.echo(f"{out}: load it with AutoModelForCausalLM.from_pretrained({str(out)!r})")


@app.command()
def prefetch(overrides: Overrides = None) -> None:
    """Download and check everything that a job needs.

    Run it where there is a network, with the job's configuration, for example experiment=zephyr_wmdp. It downloads the
    model, tokenizer, corpora and evaluation data. The job then needs no network if HF_HUB_OFFLINE=1 is set and HF_HOME
    is the same.
    """
    from unlearn.config.compose import composed
    from unlearn.config.settle import settle
    from unlearn.runs.prefetch import prefetch as fetch

    fetch(settle(composed(overrides or [])))


@app.command()
def scale(
    model: Annotated[str, typer.Argument(metavar="CHECKPOINT|model=NAME")],
    overrides: Overrides = None,
    layer: Annotated[
        int | None, typer.Option(help="The layer l.", show_default="at the paper's depth, 7 of 32 layers")
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="Number of retain documents per topic.")] = 32,
) -> None:
    """Measure a model's scale and print starting coefficients.

    It measures the norms of the states and the spreads of their coordinates at each layer, on the retain corpora
    (default: data=real). From these it computes c, beta, nu and lr and prints a file for conf/model.
    """
    from unlearn.config.compose import composed, of_model
    from unlearn.config.settle import settle
    from unlearn.runs.scale import show_scale

    given = [*of_model(model), *(overrides or [])]
    if not any(override.startswith("data=") for override in given):
        given.append("data=real")
    show_scale(settle(composed([*given, "eval=none", "tracker=none"])), layer, documents)


@app.command()
def dashboard(
    project: Annotated[
        str | None, typer.Option(help="The W&B project.", show_default="the one in conf/tracker/wandb.yaml")
    ] = None,
    entity: Annotated[str | None, typer.Option(help="The W&B entity.", show_default="your own")] = None,
    file: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Write the dashboard's definition to a file instead.")
    ] = None,
) -> None:
    """Create the dashboard in Weights & Biases.

    Each call adds a saved view to the project. If you are not logged in, its definition is written to a file.
    """
    from unlearn.tracking.dashboard import create_dashboard

    create_dashboard(project, entity, file)


def main(arguments: list[str] | None = None) -> None:
    """Run a command line, this process's own by default. Returns if it succeeds.

    Raises SystemExit: status 2 for a wrong command line; a message (status 1) for a mistake that the user can fix.
    """
    accept_every_letter()
    try:
        app(arguments, prog_name="unlearn")
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            print(GOES_ON, file=sys.stderr)
        if stop.code:
            raise
    except UserError as error:
        sys.exit(plain(f"Error: {error}"))
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):  # without importing them
            from unlearn.cli.hints import explain

            sys.exit(plain(f"Error: {explain(error)}"))
        if not isinstance(error, OSError):
            raise
        sys.exit(f"Error: {error}" if error.filename is None else f"Error: {error.filename}: {error.strerror}")
