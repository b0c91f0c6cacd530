"""lm-eval's tasks with their documents, and held-out texts, loaded and perturbed before any weight is loaded.

A query is a kind of question: "default" as lm-eval has it; any other one with options replaced by the words of a
list (see `unlearn.evaluation.tokens`).
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
import lm_eval.utils
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from tqdm import tqdm

from unlearn.errors import UserError
from unlearn.evaluation.chat import Chat
from unlearn.evaluation.forms import with_documents, with_fair_examples
from unlearn.evaluation.judges import described, judge_hash, right_answer
from unlearn.evaluation.local_data import local_data
from unlearn.evaluation.perturb import perturb
from unlearn.evaluation.task_names import tasks_folder, unknown_task
from unlearn.evaluation.texts import Passages
from unlearn.records.names import ALL, CHOOSING, is_asked
from unlearn.screen import say
from unlearn.storage.hashing import json_sha256

FACTS_OF_ONE = 4  # of so many facts, one is for choosing (eval.questions)
COMPLETE = ("mmlu", "wmdp")  # folders of lm-eval's tasks that need no task of another folder

logging.getLogger("lm_eval").setLevel(logging.ERROR)
# One bar for each model is enough: lm-eval shows another one for each task while it builds prompts.
lm_eval.api.task.tqdm = partial(tqdm, disable=True)
# lm-eval compiles a task's templates anew for each question, which takes longer than all else that it does with it.
lm_eval.utils.env.from_string = lru_cache(lm_eval.utils.env.from_string)


@dataclass(frozen=True)
class Place:
    """A task, a group or a corpus in a role, to which scores belong.

    `part_of` is the group that `eval.tasks` names, if the task is only a part of it; `leaves` are the tasks of which a
    group consists.
    """

    role: str
    task: str
    part_of: str | None
    leaves: tuple[str, ...]

    @property
    def is_leaf(self) -> bool:
        """Whether this is a task, and not a group."""
        return self.leaves == (self.task,)


@dataclass(frozen=True)
class Suite:
    """For each query lm-eval's tasks with their requests built, and held-out texts; what was asked for."""

    tasks: dict[str, Any]  # query -> lm-eval's TaskDict
    roles: dict[str, list[str]]
    leaves: dict[str, list[str]]  # every task and group -> the tasks that it consists of
    samples: dict[str, list[int]] | None  # task -> numbers of the documents that are asked; None: all
    passages: Passages = field(default_factory=dict)
    text_roles: dict[str, list[str]] = field(default_factory=dict)  # role -> names in `passages`
    asked_of: Mapping[str, Sequence[str]] = field(default_factory=dict)  # query -> its roles; without an entry, all
    # Role -> task -> the questions that were drawn for it, where others were drawn for another role of the same task.
    drawn: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tasks or self.passages)

    @property
    def members(self) -> dict[str, list[str]]:
        """The tasks, and the held-out texts, that each role consists of."""
        tasks = {role: [leaf for name in names for leaf in self.leaves[name]] for role, names in self.roles.items()}
        return tasks | self.text_roles

    @property
    def queries(self) -> list[str]:
        """The kinds of query that are asked, of questions or of texts."""
        return list(dict.fromkeys([*self.tasks, *self.passages]))

    def places(self, query: str) -> list[Place]:
        """The tasks, groups and corpora that are asked in full in a query, in each role that it is asked of.

        What `eval.tasks` names comes before its parts.
        """
        asked = set(self.tasks.get(query, {}).get("tasks", ()))
        whole = {name: tuple(leaves) for name, leaves in self.leaves.items() if asked.issuperset(leaves)}
        places: dict[tuple[str, str], Place] = {}
        for role, names in self.roles.items():
            if not is_asked(self.asked_of, query, role):
                continue
            for name in names:
                if name in whole:
                    places[role, name] = Place(role, name, None, whole[name])
            for name in names:
                for part in self._parts(name) if name in whole else ():
                    places.setdefault((role, part), Place(role, part, name, whole[part]))
        for role, names in self.text_roles.items():
            for name in names:
                if name in self.passages.get(query, {}):
                    places[role, name] = Place(role, name, None, (name,))
        return list(places.values())

    def _parts(self, group: str) -> list[str]:
        """The tasks and groups that a group has below it."""
        leaves = set(self.leaves.get(group, ()))  # none of a corpus
        inside = (name for name, own in self.leaves.items() if leaves.issuperset(own) and name != group)
        return [name for name in inside if len(leaves) > 1 or self.leaves[group] != [group]]

    def is_drawn(self, role: str, task: str, number: int) -> bool:
        """Whether a question of a task was drawn for this role (`drawn`)."""
        questions = self.drawn.get(role, {}).get(task)
        return questions is None or number in questions

    def instances(self, query: str) -> Iterator[Any]:
        """lm-eval's requests of a query, those of texts not among them."""
        for task in self.tasks[query]["tasks"].values():
            yield from task.instances

    def prompts(self, query: str, name: str) -> dict[int, str]:
        """What a task's questions, or a corpus's whole texts, are in a query: number of the document -> text."""
        if name in self.passages.get(query, {}):
            return {passage.id: passage.beginning + passage.rest for passage in self.passages[query][name]}
        prompts: dict[int, str] = {}
        for request in self.tasks[query]["tasks"][name].instances:
            prompts.setdefault(self.number(name, request), request.args[0])
        return prompts

    def number(self, task: str, request: Any) -> int:
        """The number of a request's question in its task; lm-eval counts those that are asked."""
        return request.doc_id if self.samples is None else self.samples[task][request.doc_id]

    def requests(self) -> list[Any]:
        """All requests of all queries, of questions and of texts."""
        asked = [request for query in self.tasks for request in self.instances(query)]
        texts = (passage for tasks in self.passages.values() for of_task in tasks.values() for passage in of_task)
        return asked + [passage.request for passage in texts]

    @cached_property
    def hashes(self) -> dict[str, dict[str, str]]:
        """Of each kind of query, and each role that it is asked of, the hash of all that its figures are computed from.

        Few-shot examples, options, order, right answers, and all that judges answers are included.
        """
        hashes: dict[str, dict[str, str]] = {}
        for query in self.queries:
            for place in self.places(query):
                if place.part_of is None:
                    parts = [self._judged(query, leaf) for leaf in place.leaves]
                    below = self._parts(place.task) if place.task in self.leaves else []  # a text has none
                    groups = [self._aggregated(query, name) for name in (place.task, *below)]
                    role_hash = json_sha256([place.task, parts, groups, self.drawn.get(place.role)])
                    before = hashes.setdefault(query, {}).get(place.role)
                    hashes[query][place.role] = role_hash if before is None else json_sha256([before, role_hash])
        return hashes

    def _judged(self, query: str, name: str) -> list[Any]:
        """What the figures of a task, or of a corpus, are computed from: its questions with their judge."""
        return [name, list(self.question_hashes(query, name).items())]

    def _aggregated(self, query: str, name: str) -> list[Any]:
        """What makes the figures of a group of those of its tasks."""
        group = self.tasks.get(query, {}).get("groups", {}).get(name)
        return [name, self.leaves.get(name), None if group is None else described(group.aggregate_metric_list)]

    def question_hashes(self, query: str, name: str) -> dict[int, str]:
        """Of each question of a task, or text of a corpus, a hash of what a model is given and of what judges it."""
        hashes = self._question_hashes
        if (query, name) not in hashes:
            hashes[query, name] = self._hash_questions(query, name)
        return hashes[query, name]

    def fact(self, query: str, name: str, document: Mapping[str, Any]) -> str | None:
        """A hash of what a document of a task asks about, where the task names its column (`metadata.fact`)."""
        column = _fact_column(self.tasks[query]["tasks"][name])
        return None if column is None else _short_hash([document[column]])

    @cached_property
    def _question_hashes(self) -> dict[tuple[str, str], dict[int, str]]:
        return {}

    def _hash_questions(self, query: str, name: str) -> dict[int, str]:
        if name in self.passages.get(query, {}):
            return {passage.id: _short_hash([passage]) for passage in self.passages[query][name]}
        task = self.tasks[query]["tasks"][name]
        judge = judge_hash(task)
        parts: dict[int, list[Any]] = {}
        for request in task.instances:
            given = parts.setdefault(self.number(name, request), [])
            if not given:
                given += [judge, *right_answer(task, request.doc)]
            given.append((request.request_type, request.args))
        return {number: _short_hash(given) for number, given in parts.items()}


def _short_hash(parts: Sequence[Any]) -> str:
    """64 bits of SHA-256 of what Python prints of these: enough to tell the questions of one task apart."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _fact_column(task: Task) -> str | None:
    return (task.config.metadata or {}).get("fact")


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
    part: str = ALL,
    replaced: int = 1,
    position: str = "random",
    passages: Passages | None = None,
    text_roles: Mapping[str, list[str]] = {},
    chat: Chat | None = None,
) -> Suite:
    """Load and build all questions; `passages`, and the roles that they are of, are put beside them.

    Args:
        roles: role -> names of lm-eval tasks or groups.
        queries: kind of query -> words that its options get; "default" needs none.
        asked_of: query -> the roles whose tasks it is asked of; one that is missing: all.
        include_path: a folder with task definitions beside lm-eval's own.
        local_dir: a folder with MMLU and WMDP (see `unlearn.evaluation.local_data`).
        limit: the first so many questions of each task.
        subset: so many questions of each role, drawn from its tasks in proportion to their size, but at least one of
            each: where these are more, it is said.
        part: of each task's questions, from which `limit` and `subset` take: "all", "choosing" or "judging".
        replaced, position: see `perturb`.
        chat: makes chats of the questions.

    Raises UserError for an unknown task, a tag, and a task whose data cannot be had or that has too few facts for two
    parts.
    """
    names = list(dict.fromkeys(name for group in roles.values() for name in group))
    if not names:
        return Suite({}, {}, {}, None, passages or {}, dict(text_roles), asked_of)
    manager = _manager_of(names, include_path)
    for name in names:
        if name not in manager.task_index:
            raise unknown_task(name, manager.all_tasks)
    with local_data(local_dir, examples=num_fewshot > 0):
        loaded = _load(manager, names, num_fewshot)
    leaves = _leaves(loaded)
    samples, drawn = None, {}
    available = {name: _part(task, name, part, seed) for name, task in loaded["tasks"].items()}
    if subset is not None:
        drawn = {role: _stratified(available, named, leaves, subset, seed) for role, named in roles.items()}
        _say_what_is_more(drawn, subset)
        samples = {name: sorted({n for of in drawn.values() for n in of.get(name, ())}) for name in loaded["tasks"]}
        drawn = {role: own for role, of in drawn.items() if (own := {k: v for k, v in of.items() if v != samples[k]})}
    elif limit is not None or part != ALL:
        samples = {name: list(numbers[:limit]) for name, numbers in available.items()}
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
    return Suite(suite, asked, leaves, samples, passages or {}, dict(text_roles), asked_of, drawn)


def _manager_of(names: Sequence[str], include_path: str | None) -> TaskManager:
    """The user's own tasks, with lm-eval's MMLU and WMDP if there are others, with all of lm-eval's if still others."""
    own = [] if include_path is None else [include_path]
    for folders in (own, [*(str(tasks_folder() / name) for name in COMPLETE), *own]):
        manager = _tasks_in(*folders)
        if set(names) <= set(manager.all_tasks):
            return manager
    return _tasks_in(*own, all_of_lm_evals=True)


@lru_cache  # scanning lm-eval's 14,000 task files takes ten seconds
def _tasks_in(*folders: str, all_of_lm_evals: bool = False) -> TaskManager:
    return TaskManager(include_path=list(folders), include_defaults=all_of_lm_evals)


def _load(manager: TaskManager, names: list[str], num_fewshot: int) -> dict[str, Any]:
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
        asked.set_config(key="num_fewshot", value=num_fewshot)
        asked.set_fewshot_seed(seed=0)
        merged["tasks"][name] = asked
        column = _fact_column(task)
        if column is not None and column not in (columns := task.eval_docs[0]):
            raise UserError(f"task {name}: metadata.fact is {column!r}; its documents have {', '.join(columns)}.")
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


def _part(task: Task, name: str, part: str, seed: int) -> Sequence[int]:
    """Numbers of a task's questions that are in a part. All questions about a fact are in the same one.

    Of every four facts one is for choosing, drawn by `seed`.
    """
    documents = task.eval_docs
    if part == ALL:
        return range(len(documents))
    column = _fact_column(task)
    facts = range(len(documents)) if column is None else [str(document[column]) for document in documents]
    number = {fact: i for i, fact in enumerate(dict.fromkeys(facts))}
    if len(number) < FACTS_OF_ONE:
        raise UserError(
            f"eval.questions={part}: task {name} has questions about {len(number)} facts, but two parts need at least "
            f"{FACTS_OF_ONE}."
        )
    blocks = range(len(number) // FACTS_OF_ONE + 1)
    choosing = {FACTS_OF_ONE * b + random.Random(f"{seed}/part/{name}/{b}").randrange(FACTS_OF_ONE) for b in blocks}
    return [i for i, fact in enumerate(facts) if (number[fact] in choosing) == (part == CHOOSING)]


def _stratified(
    available: Mapping[str, Sequence[int]], asked: Sequence[str], leaves: dict[str, list[str]], size: int, seed: int
) -> dict[str, list[int]]:
    """Numbers of the questions to ask of each task of a role, of those that are `available`.

    They are `size` in all, in proportion to the tasks' sizes. At least one of each: a group without questions of one of
    its tasks would be another group.
    """
    members = list(dict.fromkeys(leaf for name in asked for leaf in leaves[name]))
    sizes = {name: len(available[name]) for name in members}
    total = sum(sizes.values())
    exact = {name: min(size, total) * n / total for name, n in sizes.items()}
    shares = {name: max(1, int(share)) for name, share in exact.items()}
    rest = min(size, total) - sum(shares.values())
    for name in sorted(members, key=lambda name: int(exact[name]) - exact[name])[: max(0, rest)]:
        shares[name] += 1
    draws = {name: random.Random(f"{seed}/subset/{name}") for name in members}
    return {name: sorted(draws[name].sample(available[name], min(shares[name], n))) for name, n in sizes.items()}
