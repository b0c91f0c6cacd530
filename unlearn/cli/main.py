"""The command `unlearn`: start runs, and evaluate, attack, compare and report them.

Each command imports what it needs when it is called, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from unlearn.errors import UserError
from unlearn.screen import plain

app = typer.Typer(
    help="Run, evaluate, attack, compare and report unlearning of language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code of the base model's checkpoint, if it has some.")
]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR", help="A run, a sweep, or a folder that holds such.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="OVERRIDE", help="As for launch.py: eval=NAME, KEY=VALUE.")
]


class Format(StrEnum):
    """What a report is written as."""

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

    The same as `python launch.py` in a checkout. `unlearn run --help` lists the keys: KEY=VALUE sets one.
    """
    from unlearn.cli.launch import launch

    sys.argv = ["unlearn run", *context.args]  # where Hydra reads the command line
    launch()


@app.command()
def evaluate(
    what: Annotated[str, typer.Argument(metavar="RUN|CHECKPOINT|model=NAME")], overrides: Overrides = None
) -> None:
    """Evaluate a finished run once more, or any checkpoint.

    RUN is a run's folder. The evaluation is eval=NAME, by default the run's own; eval.KEY=VALUE changes a key of it.
    model.path=PATH: the base model was moved there. model.device=DEVICE: evaluate there. Results go to
    RUN/evaluations/. CHECKPOINT is a folder or an id of the hub, and model=NAME a file of conf/model: these are
    evaluated as base models.
    """
    from unlearn.runs.evaluation import evaluate as run

    run(what, overrides or [])


@app.command()
def attack(
    arguments: Annotated[list[str], typer.Argument(metavar="RUN... [attack=NAME,...] [OVERRIDE...]")],
    retrained: Annotated[
        str | None, typer.Option(help="A checkpoint like the base model, trained without what was forgotten.")
    ] = None,
) -> None:
    """Attack finished runs: does what was forgotten come back?

    Each attack of conf/attack (attack=all, the default; docs/attacks.md lists them) changes the unlearned model, or
    reads its states, at several levels; so it does with the base model and the --retrained one, for comparison. At each
    level the run's own evaluation is repeated, or that of eval=NAME, with default and perturbed queries: 300 questions
    of each role, unless eval.subset=N (null: all) says otherwise. attack.KEY=VALUE changes a single attack. model.path,
    model.device as for `unlearn evaluate`. Results go to RUN/attacks; what is there is not measured again.
    """
    from unlearn.cli.arguments import attack_arguments

    parsed = attack_arguments(arguments)
    if not parsed.folders:
        raise typer.BadParameter("name the folder of a finished run.")
    from unlearn.attacks.make import plan
    from unlearn.attacks.run import attack as run

    attacks = plan(parsed.attacks, parsed.attack_overrides)
    run(parsed.folders, attacks, parsed.overrides, retrained=retrained)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A")], b: Annotated[Path, typer.Argument(metavar="RUN_B")]
) -> None:
    """Compare two runs question by question.

    For each task and query: the difference of accuracies (B minus A), its 95 % interval, and McNemar's test.
    """
    from unlearn.analysis.compare import show_comparison

    show_comparison(a, b)


@app.command()
def report(
    folders: Folders,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Default: report.html; tables go to the terminal.")
    ] = None,
    format: Annotated[Format, typer.Option(help="Of the page (html) or of one table.")] = Format.html,  # noqa: A002
    table: Annotated[
        str | None,
        typer.Option(
            help="With md, latex or csv: settings, contrasts, table_1, runs, scores or unusable; with --paper also "
            "published, published_table_1.",
            show_default="settings",
        ),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each figure there, as PDF, PNG and CSV.")
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Add the paper's published numbers, and its phases of nu.")
    ] = False,
    title: Annotated[str, typer.Option()] = "Unlearning report",
) -> None:
    """Write figures and tables of any runs.

    As an HTML page with the paper's figures and tables, or as one table in Markdown, LaTeX or CSV.
    """
    if format is Format.html and table is not None:
        raise typer.BadParameter("--table goes with --format md, latex or csv: the page has all tables.")
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
        bool, typer.Option("--theory", help="First run `unlearn theory` on a seed of each method.")
    ] = False,
    limit: Annotated[int, typer.Option(min=2, help="Questions of --theory.")] = 100,
    title: Annotated[str, typer.Option()] = "The paper's claims",
    preface: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown to begin with, such as what was run and why.")
    ] = None,
) -> None:
    """Judge the paper's claims on any runs.

    Each claim gets a verdict, with its numbers. Needed are, of each method and in at least two seeds: runs without
    RNA, runs that differ from them in nu alone, and runs without RNA that differ from them in c or beta, or in the
    layer, alone (sweep=figure_2, figure_3, layers; sweep=seeds eval=paper for the other claims).
    """
    from unlearn.paper.claims.write import write_claims

    write_claims(folders, output, theory=theory, limit=limit, title=title, preface=preface)


@app.command()
def theory(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    against: Annotated[Path | None, typer.Option(metavar="RM_RUN", help="The same without RNA (rna.nu=0).")] = None,
    query: Annotated[str, typer.Option(help="The kind of query whose options are replaced.")] = "perturbed",
    role: Annotated[str, typer.Option(help="The role whose tasks are asked.")] = "retain",
    limit: Annotated[int, typer.Option(min=2, help="Questions, in proportion from all tasks.")] = 200,
    draws: Annotated[int, typer.Option(min=2, help="Draws of noise for each question and variance.")] = 64,
    directions: Annotated[int, typer.Option(min=2, help="Directions along which spreads are measured.")] = 32,
    batch: Annotated[int, typer.Option(min=2, help="Noisy copies of a token in memory at a time.")] = 64,
    seed: Annotated[int, typer.Option(help="Of noise and directions.")] = 0,
    injected: Annotated[
        bool, typer.Option(help="Measure Theorems 4.3 and 5.2 with injected noise: nearly all of the time.")
    ] = True,
    trust_remote_code: Trust = False,
) -> None:
    """Measure the paper's theorems on a finished run.

    Assumptions 4.2 and 5.1 and Theorems 4.3 and 5.2. A verdict on each is shown here; all numbers go to
    RUN/theory.json, or RUN/theory-ROLE-QUERY.json for another role or query.
    The model runs in float32, a question at a time.
    """
    from unlearn.paper.theory.measure import Effort, measure_and_show

    measure_and_show(
        folder,
        against,
        query=query,
        role=role,
        effort=Effort(limit, draws, directions, batch, seed),
        injected=injected,
        overrides=["model.trust_remote_code=true"] if trust_remote_code else [],
    )


@app.command()
def status(
    sweep: Annotated[Path | None, typer.Argument(metavar="SWEEP", help="Default: the last one of outputs/.")] = None,
    retry: Annotated[
        bool, typer.Option("--retry", help="First start again the jobs that failed or were interrupted.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Show the table once, in a terminal, too.")] = False,
) -> None:
    """Show the jobs of a sweep, or retry them.

    In a terminal the table is live until all jobs have ended. A retry uses the configuration of the sweep's
    beginning, and its code, unless the sweep ran in the launcher's own process. Exit status: 0 all done, 1 some failed,
    3 not finished.
    """
    from unlearn.sweeps.status import show_status

    raise typer.Exit(show_status(sweep, retry_failed=retry, once=once))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, outputs/runs/NAME-HASH.")],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Folder to write, new or empty.")],
    model: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where the base model is now, if it was moved.")
    ] = None,
    trust_remote_code: Trust = False,
) -> None:
    """Write a run's unlearned model as a Hugging Face checkpoint."""
    from unlearn.models.export import export as write

    write(run, out, model, trust_remote_code=trust_remote_code)
    typer.echo(f"{out}: load it with AutoModelForCausalLM.from_pretrained({str(out)!r})")


@app.command()
def prefetch(overrides: Overrides = None) -> None:
    """Fetch and check all that a job will need.

    For a node with a network: model, tokenizer, corpora and evaluation data of a configuration, for example
    experiment=zephyr_wmdp. With
    HF_HUB_OFFLINE=1 (and the same HF_HOME) the job then needs no network.
    """
    from unlearn.config.compose import composed
    from unlearn.config.settle import settle
    from unlearn.runs.prefetch import prefetch as fetch

    fetch(settle(composed(overrides or [])))


@app.command()
def scale(
    model: Annotated[str, typer.Argument(metavar="CHECKPOINT|model=NAME")],
    overrides: Overrides = None,
    layer: Annotated[int | None, typer.Option(help="l.", show_default="as deep as 7 of 32 layers, the paper's")] = None,
    documents: Annotated[int, typer.Option(min=1, help="Retained documents of each topic.")] = 32,
) -> None:
    """Measure a model's scale, and print coefficients to begin with.

    Norms of states and spreads of their coordinates at each layer, on the retain corpora (data=real by default), and
    from them values of c, beta, nu and lr for a file in conf/model.
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
    project: Annotated[str | None, typer.Option(help="Of W&B.", show_default="that of conf/tracker/wandb.yaml")] = None,
    entity: Annotated[str | None, typer.Option(help="Of W&B.", show_default="your own")] = None,
    file: Annotated[
        Path | None, typer.Option("-o", metavar="FILE", help="Write the dashboard's definition to a file instead.")
    ] = None,
) -> None:
    """Create the dashboard in Weights & Biases.

    Each call adds a saved view to the project. Where nobody is logged in, its definition is written to a file.
    """
    from unlearn.tracking.dashboard import create_dashboard

    create_dashboard(project, entity, file)


@app.command()
def toy(
    out: Annotated[Path | None, typer.Option(help="Folder to write to.", show_default="the package's own")] = None,
    seed: Annotated[int, typer.Option(help="Of the world and of the training.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 2000,
    ignorant: Annotated[
        bool, typer.Option("--ignorant", help="A model that never sees what is to be forgotten.")
    ] = False,
) -> None:
    """Rebuild the embedded world and model.

    From a seed, in about 15 minutes on two cores.
    """
    from unlearn.toy.build import build

    if ignorant and out is None:
        raise typer.BadParameter("--ignorant needs --out: the package's own model knows what is to be forgotten.")
    build(out, seed, steps, ignorant=ignorant)


def main(arguments: list[str] | None = None) -> None:
    """Run a command line, this process's own by default. Returns if it succeeds.

    Raises SystemExit: 2 for a wrong command line; a sentence, which is exit status 1, for what the user can mend.
    """
    try:
        app(arguments, prog_name="unlearn")
    except SystemExit as stop:
        if stop.code:
            raise
    except UserError as error:
        sys.exit(plain(f"Error: {error}"))
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("hydra", "omegaconf"):  # not imported for that
            from unlearn.cli.hints import explain

            sys.exit(plain(f"Error: {explain(error)}"))
        if not isinstance(error, OSError):
            raise
        sys.exit(f"Error: {error}" if error.filename is None else f"Error: {error.filename}: {error.strerror}")
