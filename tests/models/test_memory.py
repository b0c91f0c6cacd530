"""Batches become smaller where memory runs out; containers and jobs have the memory of their control groups."""

import pytest
import torch

from unlearn.errors import UserError
from unlearn.models import memory
from unlearn.models.memory import all_memory, free_memory, group_memory, in_batches

CPU = torch.device("cpu")


def write_group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def machine(tmp_path):
    """A made-up machine: a function that writes /proc/self/cgroup, and where its control groups are."""
    (tmp_path / "proc/self").mkdir(parents=True)
    return (tmp_path / "proc/self/cgroup").write_text, tmp_path / "sys/fs/cgroup"


def test_a_job_has_the_limits_of_its_control_group_and_those_above(machine, tmp_path):
    write, groups = machine
    write("0::/slurm/job_7/step_0\n")
    write_group(groups / "slurm/job_7/step_0", memory__max="max", memory__current=10, memory__stat="inactive_file 1")
    write_group(groups / "slurm/job_7", memory__max=1000, memory__current=700, memory__stat="anon 9\ninactive_file 300")
    write_group(groups / "slurm", memory__max=5000, memory__current=6000, memory__stat="inactive_file 0")
    assert list(group_memory(tmp_path)) == [(1000, 600), (5000, 0)]


@pytest.mark.parametrize("path", ["/docker/7", "/"])
def test_a_container_of_the_first_version_has_its_limit(machine, tmp_path, path):
    """It sees its own group as the topmost one, though the path may be the host's."""
    write, groups = machine
    write(f"9:name=systemd:/\n4:cpu,cpuacct:{path}\n3:memory:{path}\n")
    stat = "inactive_file 50\ntotal_inactive_file 300"
    write_group(groups / "memory", memory__limit_in_bytes=1000, memory__usage_in_bytes=700, memory__stat=stat)
    assert list(group_memory(tmp_path)) == [(1000, 600)]


def test_without_control_groups_there_is_no_limit(machine, tmp_path):
    assert list(group_memory(tmp_path)) == []  # as on systems that are no Linux
    machine[0]("0::/\n")
    assert list(group_memory(tmp_path)) == []


def test_the_least_limit_is_what_a_process_has(monkeypatch):
    monkeypatch.setattr(memory, "group_memory", lambda: [])
    alone = all_memory(CPU)
    monkeypatch.setattr(memory, "group_memory", lambda: [(1000, 600), (900, 800), (2 * alone, 2 * alone)])
    assert (all_memory(CPU), free_memory(CPU)) == (900, 600)


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

    with pytest.raises(UserError, match="out of memory with a batch of one row: no memory") as raised:
        in_batches(always, torch.arange(7), 4)
    assert raised.value.__context__ is None  # which would keep the tensors of the failed attempt
    with pytest.raises(RuntimeError, match="another"):
        in_batches(lambda rows: (_ for _ in ()).throw(RuntimeError("another")), [1, 2], 2)
