"""lm-eval's tasks with their documents, and held-out texts, loaded and perturbed before any weight is loaded.

A query is a kind of question: "default" as lm-eval has it; any other one with options replaced by the words of a
list (see `unlearn.evaluate.tokens`).
"""

from __future__ import annotations

import copy
import hashlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import Any

import lm_eval.api.task
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from unlearn.config.schema import is_asked
from unlearn.errors import UserError, nearest
from unlearn.evaluate.chat import Chat
from unlearn.evaluate.forms import Form, with_documents, with_fair_examples
from unlearn.evaluate.local_data import local_data
from unlearn.evaluate.perturb import perturb
from unlearn.evaluate.texts import Passages
from unlearn.screen import say
from unlearn.storage.hashing import json_sha256

logging.getLogger("lm_eval").setLevel(logging.ERROR)
# One bar for each model is enough: lm-eval shows another one for each task while it builds prompts.
lm_eval.api.task.tqdm = partial(tqdm, disable=True)


@dataclass(frozen=True)
class Suite:
    """For each query lm-eval's tasks with their requests built, and held-out texts; what was asked for."""

    tasks: dict[str, Any]  # query -> lm-eval's TaskDict
    roles: dict[str, list[str]]
    leaves: dict[str, list[str]]  # every task and group -> the tasks that it consists of
    samples: dict[str, list[int]] | None  # task -> numbers of the documents that are asked; None: all
    passages: Passages = field(default_factory=dict)
    text_roles: dict[str, list[str]] = field(default_factory=dict)  # role -> names in `passages`
    # Role -> task -> the questions that were drawn for it, where others were drawn for another role of the same task.
    drawn: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tasks or self.passages)

    @property
    def members(self) -> dict[str, list[str]]:
        """The tasks, and the held-out texts, that each role consists of."""
        found = {role: [leaf for name in asked for leaf in self.leaves[name]] for role, asked in self.roles.items()}
        return found | self.text_roles

    @property
    def queries(self) -> list[str]:
        """The kinds of query that are asked, of questions or of texts."""
        return list(dict.fromkeys([*self.tasks, *self.passages]))

    def asked(self, *queries: str) -> dict[str, list[str]]:
        """The tasks and groups that are asked in full in each of these queries, and the tasks that each consists of."""
        common = set.intersection(*(set(self.tasks[query]["tasks"]) for query in queries))
        return {name: leaves for name, leaves in self.leaves.items() if common.issuperset(leaves)}

    def drawn_of(self, name: str) -> Mapping[str, Sequence[int]]:
        """The questions of each task of a task or group that its figures are of; tasks that are left out: all asked."""
        return next((self.drawn.get(role, {}) for role, names in self.roles.items() if name in names), {})

    def instances(self, query: str) -> Iterator[Any]:
        """lm-eval's requests of a query, those of texts not among them."""
        for task in self.tasks[query]["tasks"].values():
            yield from task.instances

    def prompts(self, query: str, name: str) -> dict[int, str]:
        """What a task's questions, or a corpus's whole texts, are in a query: number of the document -> text."""
        if name in self.passages.get(query, {}):
            return {passage.id: passage.beginning + passage.rest for passage in self.passages[query][name]}
        found: dict[int, str] = {}
        for request in self.tasks[query]["tasks"][name].instances:
            found.setdefault(request.doc_id, request.args[0])
        return found

    def requests(self) -> list[Any]:
        """All requests of all queries, of questions and of texts."""
        asked = [request for query in self.tasks for request in self.instances(query)]
        texts = (passage for tasks in self.passages.values() for of_task in tasks.values() for passage in of_task)
        return asked + [passage.request for passage in texts]

    @cached_property
    def hashes(self) -> dict[str, dict[str, str]]:
        """Of each kind of query, and each role that it is asked of, the hash of all that its figures are computed from.

        Few-shot examples, options, order, right answers and metrics are included.
        """
        found: dict[str, dict[str, str]] = {}
        for query in self.queries:
            for role, members in self.members.items():
                parts = {name: self._sha256(query, name) for name in members}
                if any(parts.values()):
                    found.setdefault(query, {})[role] = json_sha256([self.roles.get(role), parts])
        return found

    def _sha256(self, query: str, name: str) -> str | None:
        """The hash of a task, or of the passages of a corpus, in a query; None if it is not asked."""
        if name in self.passages.get(query, {}):
            return hashlib.sha256(repr(self.passages[query][name]).encode()).hexdigest()
        if name not in self.tasks.get(query, {}).get("tasks", {}):
            return None
        task = self.tasks[query]["tasks"][name]
        digest = hashlib.sha256(repr(sorted(task.aggregation())).encode())
        for request in task.instances:
            digest.update(repr((request.doc_id, request.request_type, request.args)).encode())
            if request.idx == 0:
                digest.update(repr(task.doc_to_target(request.doc)).encode())
        return digest.hexdigest()


def load_suite(
    roles: Mapping[str, Sequence[str]],
    queries: Mapping[str, Sequence[str]],
    *,
    asked_of: Mapping[str, Sequence[str]] = {},
    include_path: str | None = None,
    local_dir: str | None = None,
    seed: int = 0,
    num_fewshot: int = 0,
    limit: int | None = None,
    subset: int | None = None,
    replaced: int = 1,
    position: str = "random",
    passages: Passages | None = None,
    text_roles: Mapping[str, list[str]] = {},
    form: Form | None = None,
    chat: Chat | None = None,
) -> Suite:
    """Load and build all questions; `passages`, and the roles that they are of, are put beside them.

    Args:
        roles: role -> names of lm-eval tasks or groups.
        queries: kind of query -> words that its options get; "default" needs none.
        asked_of: query -> the roles whose tasks it is asked of; one that is missing: all.
        include_path: a folder with task definitions beside lm-eval's own.
        local_dir: a folder with MMLU and WMDP (see `unlearn.evaluate.local_data`).
        limit: the first so many questions of each task.
        subset: so many questions of each role, drawn from its tasks in proportion to their size, but at least one of
            each: where these are more, it is said.
        replaced, position: see `perturb`.
        chat: makes chats of the questions.
        form: makes each task another form of it, before its options are replaced.

    Raises UserError for an unknown task, a tag, and a task whose data cannot be had.
    """
    names = list(dict.fromkeys(name for group in roles.values() for name in group))
    if not names:
        return Suite({}, {}, {}, None, passages or {}, dict(text_roles))
    manager = _tasks_in(include_path, beside_lm_evals=False)
    if not set(names) <= set(manager.all_tasks):
        manager = _tasks_in(include_path, beside_lm_evals=True)
    for name in names:
        if name not in manager.task_index:
            raise UserError(f"eval.tasks: unknown lm-eval task {name!r}.{nearest(name, manager.all_tasks)}")
    with local_data(local_dir, examples=num_fewshot > 0):
        loaded = _load(manager, names, num_fewshot, form)
    leaves = _leaves(loaded)
    samples, drawn = None, {}
    if subset is not None:
        drawn = {role: _stratified(loaded["tasks"], named, leaves, subset, seed) for role, named in roles.items()}
        _say_what_is_more(drawn, subset)
        samples = {name: sorted({n for of in drawn.values() for n in of.get(name, ())}) for name in loaded["tasks"]}
        drawn = {role: part for role, of in drawn.items() if (part := {k: v for k, v in of.items() if v != samples[k]})}
    elif limit is not None:
        samples = {name: list(range(min(limit, len(task.eval_docs)))) for name, task in loaded["tasks"].items()}
    suite = {}
    for query, tokens in queries.items():
        named = [name for role in roles if is_asked(asked_of, query, role) for name in roles[role]]
        tasks = {leaf: loaded["tasks"][leaf] for name in named for leaf in leaves[name]}
        if not tasks:
            continue
        if query != "default":
            change = partial(perturb, tokens=tokens, seed=seed, count=replaced, position=position)
            tasks = {name: with_documents(task, change) for name, task in tasks.items()}
        else:
            tasks = {name: copy.copy(task) for name, task in tasks.items()}
        for name, task in tasks.items():
            _build(task, None if samples is None else samples[name], chat)
        suite[query] = {"tasks": tasks, **_groups_of(loaded, leaves, tasks)}
    asked = {role: list(named) for role, named in roles.items()}
    return Suite(suite, asked, leaves, samples, passages or {}, dict(text_roles), drawn)


@lru_cache  # scanning lm-eval's thousands of task files takes seconds
def _tasks_in(include_path: str | None, beside_lm_evals: bool) -> TaskManager:
    return TaskManager(include_path=include_path, include_defaults=beside_lm_evals)


def _load(manager: TaskManager, names: list[str], num_fewshot: int, form: Form | None) -> dict[str, Any]:
    """lm-eval's TaskDict of these tasks and groups; one that is also part of a named group is loaded once."""
    merged: dict[str, dict] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        if name in merged["tasks"]:
            continue
        try:
            loaded = manager.load([name])
        except UserError:
            raise
        except Exception as error:  # whatever the hub or a task's own code raises
            raise UserError(
                f"eval.tasks: cannot load the data of task {name!r}: {error}. Without a network: fetch it beforehand "
                f"(`unlearn prefetch`), or eval.local_dir=DIR for MMLU and WMDP from a folder."
            ) from error
        if name not in {**loaded["tasks"], **loaded["groups"]}:
            raise UserError(
                f"eval.tasks: {name!r} is a tag, for which lm-eval has no figure of its own: name tasks or groups, "
                f"here [{', '.join(loaded['tasks'])}]."
            )
        for kind, found in loaded.items():
            merged[kind].update(found)
    for name, task in merged["tasks"].items():
        asked = with_fair_examples(task) if num_fewshot else task
        asked = asked if form is None else form(asked)
        asked.set_config(key="num_fewshot", value=num_fewshot)
        asked.set_fewshot_seed(seed=0)
        merged["tasks"][name] = asked
    return merged


def _leaves(loaded: dict[str, Any]) -> dict[str, list[str]]:
    """The tasks that each task and group consists of."""

    def below(name: str) -> list[str]:
        children = loaded["group_map"].get(name)
        return [name] if children is None else [leaf for child in children for leaf in below(child)]

    return {name: below(name) for name in (*loaded["tasks"], *loaded["group_map"])}


def _groups_of(loaded: dict[str, Any], leaves: dict[str, list[str]], tasks: Mapping[str, Task]) -> dict[str, Any]:
    """The rest of lm-eval's TaskDict: the groups all of whose tasks are among these."""
    whole = {name for name in loaded["group_map"] if tasks.keys() >= set(leaves[name])}
    return {kind: {n: v for n, v in loaded[kind].items() if n in whole} for kind in ("groups", "group_map")}


def _build(task: Task, samples: list[int] | None, chat: Chat | None) -> None:
    """Build a task's requests now and only now; every evaluation uses them again."""
    task.build_all_requests(samples=samples, **({} if chat is None else chat.arguments()))
    task.build_all_requests = lambda **_kwargs: None


def _say_what_is_more(drawn: Mapping[str, Mapping[str, Sequence[int]]], subset: int) -> None:
    for role, of in drawn.items():
        asked = sum(map(len, of.values()))
        if asked > subset:
            say(
                f"Role {role} is asked {asked} questions, not {subset} (eval.subset, or eval.every_questions of a "
                f"course): at least one of each of its {len(of)} tasks."
            )


def _stratified(
    tasks: Mapping[str, Task], asked: Sequence[str], leaves: dict[str, list[str]], size: int, seed: int
) -> dict[str, list[int]]:
    """Numbers of the questions to ask of each task of a role: `size` in all, in proportion to the tasks' sizes.

    At least one of each: a group without questions of one of its tasks would be another group.
    """
    members = list(dict.fromkeys(leaf for name in asked for leaf in leaves[name]))
    sizes = {name: len(tasks[name].eval_docs) for name in members}
    total = sum(sizes.values())
    exact = {name: min(size, total) * n / total for name, n in sizes.items()}
    shares = {name: max(1, int(share)) for name, share in exact.items()}
    rest = min(size, total) - sum(shares.values())
    for name in sorted(members, key=lambda name: int(exact[name]) - exact[name])[: max(0, rest)]:
        shares[name] += 1
    draws = {name: random.Random(f"{seed}/subset/{name}") for name in members}
    return {name: sorted(draws[name].sample(range(n), min(shares[name], n))) for name, n in sizes.items()}
