"""Batches become smaller where memory runs out."""

import pytest
import torch

from unlearn.errors import UserError
from unlearn.models.memory import in_batches


def test_batches_are_halved_and_earlier_results_kept():
    taken = []

    def needs_memory(rows):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("no memory")
        taken.append(len(rows))
        return 10 * rows

    results, size = in_batches(needs_memory, torch.arange(7), 5)
    assert torch.cat(results).tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert (taken, size) == ([2, 2, 2, 1], 2)


def test_memory_may_run_out_in_a_later_batch():
    def short_of_memory_at_the_end(rows):
        if 6 in rows and len(rows) > 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return list(rows)

    results, size = in_batches(short_of_memory_at_the_end, list(range(8)), 4)
    assert results == [[0, 1, 2, 3], [4, 5], [6], [7]]
    assert size == 1


def test_one_row_that_does_not_fit_is_an_error_and_other_errors_pass():
    def always(rows):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(UserError, match="Out of memory, even with one row per batch: no memory") as raised:
        in_batches(always, torch.arange(7), 4)
    assert raised.value.__context__ is None  # which would keep the tensors of the failed attempt
    with pytest.raises(RuntimeError, match="another"):
        in_batches(lambda rows: (_ for _ in ()).throw(RuntimeError("another")), [1, 2], 2)
