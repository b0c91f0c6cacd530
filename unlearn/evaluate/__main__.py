"""Evaluate a finished run, or any checkpoint, without training.

python -m unlearn.evaluate RUN_DIR eval=quick             adds to the run's metrics.json and samples/
python -m unlearn.evaluate CHECKPOINT eval=wmdp           a folder or hub id, as the base model
python -m unlearn.evaluate model=zephyr_7b_beta eval=wmdp that of a configuration
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from unlearn.cli import CONF
from unlearn.config import Config, settle
from unlearn.delta import applied, load_delta
from unlearn.errors import UserError
from unlearn.evaluate.harness import Answers, against_base, evaluate
from unlearn.evaluate.plan import BaseAnswers, make_suite, maxlogit_plan, query_words
from unlearn.experiment import make_source
from unlearn.fingerprint import checkpoint_fingerprint
from unlearn.model import check_weights, load_tokenizer, load_whole
from unlearn.run_folder import RunFolder, write_json
from unlearn.screen import say, show_result


def composed(overrides: list[str]) -> Any:
    """conf/ with these overrides, as on launch.py's command line, not yet checked."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides)


def run_config(folder: RunFolder, overrides: list[str]) -> Config:
    """The configuration of a run with another evaluation. Raises UserError for overrides of anything else."""
    for override in overrides:
        if not override.lstrip("+~").startswith("eval"):
            raise UserError(f"{override}: of a finished run only eval and its keys can be chosen anew.")
    raw = OmegaConf.create(folder.record["config"])
    raw.eval = composed(overrides).eval
    return settle(raw)


def ask(config: Config, delta: Path | None) -> tuple[dict[str, float], list[Answers]]:
    """Metrics and answers of the base model and, with a delta, of the unlearned one."""
    source = make_source(config)
    check_weights(source, None)
    tokenizer = load_tokenizer(source)
    suite = make_suite(config, query_words(config, source, tokenizer))
    if not suite.tasks:
        raise UserError("eval.tasks is empty: choose an evaluation, e.g. eval=quick.")
    model = load_whole(source)
    answer = partial(
        evaluate, model, tokenizer, suite, tokens_per_batch=config.eval.tokens_per_batch, maxlogit=maxlogit_plan(config)
    )
    kept = BaseAnswers(config, source, suite)
    base = kept.load()
    if base is None:
        base = answer(label="base")
        kept.keep(base)
    if delta is None:
        return base.metrics, [base]
    weights, metadata = load_delta(delta)
    with applied(model, weights, metadata):
        unlearned = answer(label="unlearned")
    return base.metrics | unlearned.metrics | against_base(base, unlearned, suite), [base, unlearned]


def evaluate_run(folder: RunFolder, overrides: list[str]) -> Path:
    """Add another evaluation to a run's folder; returns it. What was evaluated before stays."""
    config = run_config(folder, overrides)
    metrics, answers = ask(config, folder.file("delta.safetensors"))
    for answer in answers:
        answer.write_samples(folder.file("samples"))
    before = json.loads(folder.file("metrics.json").read_text()) if folder.file("metrics.json").is_file() else {}
    write_json(folder.file("metrics.json"), before | metrics)
    folder.record.setdefault("evaluations", []).append(asdict(config.eval))
    write_json(folder.file("run.json"), folder.record)
    show_result(metrics, config.eval.tasks, config.eval.queries, folder.path, None)
    return folder.path


def evaluate_checkpoint(overrides: list[str]) -> Path:
    """Evaluate a configuration's model as the base model, into OUTPUT_ROOT/evaluations; returns the folder."""
    config = settle(composed(overrides))
    metrics, [answers] = ask(config, None)
    name = f"{config.model.name}-{checkpoint_fingerprint(make_source(config))[:10]}"
    folder = Path(config.output_root) / "evaluations" / name
    answers.write_samples(folder / "samples")
    write_json(folder / "metrics.json", metrics)
    show_result(metrics, config.eval.tasks, config.eval.queries, folder, None)
    return folder


def main() -> None:
    """Parse the command line and evaluate; exit status 1 with one line if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m unlearn.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", metavar="RUN_DIR|CHECKPOINT|model=NAME")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="eval=NAME, eval.KEY=VALUE, as for launch.py")
    args = parser.parse_args()
    folder = RunFolder(Path(args.what))
    try:
        if folder.record:
            evaluate_run(folder, args.overrides)
        else:
            model = args.what if "=" in args.what else f"model.path={args.what}"
            evaluate_checkpoint([model, *args.overrides])
    except (UserError, HydraException) as error:
        sys.exit(f"Error: {error}")
    say("Done.")


if __name__ == "__main__":
    main()
