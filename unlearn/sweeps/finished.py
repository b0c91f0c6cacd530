"""Which jobs of a sweep are finished already: what the run itself would say, by the content of all that it reads."""

from __future__ import annotations

from collections.abc import Mapping

from unlearn.config.identity import identity, run_folder
from unlearn.config.schema import Config
from unlearn.errors import UserError, describe
from unlearn.records.names import NGRAM_QUERIES
from unlearn.runs.folder import RunFolder
from unlearn.sweeps.packs import groups_that_share


def finished(configs: Mapping[int, Config]) -> tuple[list[int], dict[int, str]]:
    """The jobs whose runs are finished, and the error of each that would be taken for a run with other inputs.

    Inputs are loaded as for a run, once for all jobs that share them, and only if a run may be finished. A job with
    attacks or with queries by n-grams is left to its own process, which may need a model to tell.
    """
    done: list[int] = []
    errors: dict[int, str] = {}
    for group in groups_that_share({n: config for n, config in configs.items() if _may_be_finished(config)}):
        from unlearn.runs.inputs import hashes_of_run, load_inputs  # imports torch, which takes seconds

        try:
            inputs = load_inputs(configs[group[0]], elsewhere=True)
        except UserError as error:
            errors |= dict.fromkeys(group, describe(error))
            continue
        except Exception:  # as of a network that only the jobs have: they will tell
            continue
        for number in group:
            try:
                RunFolder(run_folder(configs[number])).verify(hashes_of_run(configs[number], inputs))
                done.append(number)
            except UserError as error:
                errors[number] = describe(error)
    return done, errors


def _may_be_finished(config: Config) -> bool:
    if config.train.force or config.attacks or NGRAM_QUERIES.keys() & set(config.eval.queries):
        return False
    try:
        run = RunFolder(run_folder(config))
    except UserError:  # it is damaged, which the run itself reports
        return False
    return run.done and run.record.get("identity") == identity(config)
