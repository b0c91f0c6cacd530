"""A search in W&B, offline: what its file holds, also after a resume."""

import time
from types import SimpleNamespace

import pytest

from tests.sweeps.test_search import search
from tests.tracking.wandb_log import records, rows
from unlearn.sweeps.search.study import Outcome
from unlearn.sweeps.search.track import tracked

TRACKER = SimpleNamespace(
    name="wandb", project="unlearn", entity=None, mode="offline", group=None, tags=[], timeout_s=5
)


def failing(jobs):
    """Trial 2 fails; of the others, each forgets more than the one before."""
    figures = {n: {"forget_text": n, "forget_token_cost": 1.0, "retain_text": 0.1 if n < 3 else 0.9} for n in jobs}
    return {n: Outcome(error="boom") if n == 2 else Outcome(f"runs/{n}", of) for n, of in figures.items()}


def test_each_trial_is_a_step_of_one_run_also_after_a_resume(tmp_path):
    for total in (2, 4):
        going_on = search(tmp_path, failing, trials=total, generation=2)
        with tracked(tmp_path, going_on.study, TRACKER) as send:
            going_on.go_on(between=send)
            send()
        time.sleep(1.1)  # W&B names the folder of an offline run by its second
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    sent = list(rows(records(file)))
    steps = [row for row in sent if "search/trial" in row]
    assert [row["search/trial"] for row in steps] == [0, 1, 2, 3]
    assert [row.get("search/forget_text") for row in steps] == [0, 1, None, 3]
    assert [row["search/best_forget_text"] for row in steps] == [0, 1, 1, 1]  # the last one breaks a bound
    tables = [row for row in sent if "trials/nrows" in row][-1]
    assert (tables["trials/nrows"], tables["front/nrows"]) == (4, 1)


def test_a_search_that_fails_ends_as_a_failed_run(tmp_path):
    going_on = search(tmp_path, trials=2, generation=2)
    with pytest.raises(KeyboardInterrupt), tracked(tmp_path, going_on.study, TRACKER):
        raise KeyboardInterrupt
    [file] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert [e.exit.exit_code for e in records(file) if e.WhichOneof("record_type") == "exit"] == [1]


def test_an_error_of_wandb_ends_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("unlearn.tracking.wandb_run.start_wandb", lambda *_, **__: 1 / 0)
    going_on = search(tmp_path, trials=2, generation=2)
    with tracked(tmp_path, going_on.study, TRACKER) as send:
        going_on.go_on()
        send()
    assert "W&B did not accept the search" in capsys.readouterr().err
    assert len(going_on.study.get_trials()) == 2
