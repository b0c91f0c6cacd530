"""What the planning of an evaluation saves, counted: `python -m bench.planning --local-dir DIR` (a folder with MMLU).

Tokens of all forward passes, padding included, with shared beginnings and without, with batches by length and without;
FLOPs with the head at scored positions and at all; seconds of one thread for tokenising. Nothing is scored.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from bench.eval import QUERIES, SUBJECTS
from bench.work import forward_flops
from unlearn.config.compose import composed
from unlearn.config.settle import settle
from unlearn.evaluation.rows import LARGEST_TREE, Request, Row, by_length, make_rows
from unlearn.evaluation.scorer import Scorer
from unlearn.evaluation.suite import Suite, load_suite
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.training.cost import Shape


def padded_tokens(batches: Sequence[Sequence[Row]]) -> int:
    """Tokens of the forward passes of these batches."""
    return sum(max(len(row.tree.ids) for row in batch) * len(batch) for batch in batches)


def sorted_batches(rows: Sequence[Row], tokens_per_batch: int) -> list[list[Row]]:
    """As the scorer makes them."""
    return [[rows[i] for i in batch] for batch in by_length([len(row.tree.ids) for row in rows], tokens_per_batch)]


def unsorted_batches(rows: Sequence[Row], tokens_per_batch: int) -> list[list[Row]]:
    """Rows in the order of their requests, as many in each batch as the longest row allows."""
    given = sorted(rows, key=lambda row: row.requests[0])
    size = max(1, tokens_per_batch // max(len(row.tree.ids) for row in rows))
    return [given[start : start + size] for start in range(0, len(given), size)]


def encoded(scorer: Scorer, suite: Suite) -> tuple[list[Request], dict[str, float]]:
    """All distinct requests as tokens, and the seconds of tokenising them together and one by one."""
    pairs = list(dict.fromkeys(request.args for query in suite.tasks for request in suite.instances(query)))
    start = time.process_time()
    for pair in pairs:
        scorer._encode_pair(*pair)
    middle = time.process_time()
    scorer._tokenise(pairs)
    requests = [(pair, *scorer._encode_pair(*pair)) for pair in pairs]
    return requests, {"one by one": middle - start, "together": time.process_time() - middle}


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local-dir", help="a folder with MMLU (eval.local_dir); without it from the hub")
    parser.add_argument("--model", default="smollm2_135m", help="a file of conf/model")
    parser.add_argument("--questions", type=int, default=100, help="of each subject")
    parser.add_argument("--num-fewshot", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = settle(composed([f"model={args.model}", "eval=none"]))
    source, tokens_per_batch = Source.of(config.model), config.eval.tokens_per_batch
    model = load_whole(source)
    scorer = Scorer(ModelGroup(model), load_tokenizer(source), tokens_per_batch)
    tasks = [f"mmlu_{subject}" for subject in SUBJECTS]
    suite = load_suite(
        {"retain": tasks}, QUERIES, local_dir=args.local_dir, limit=args.questions, num_fewshot=args.num_fewshot
    )
    requests, seconds = encoded(scorer, suite)
    alone = make_rows(requests, scorer.max_length, 0)
    trees = make_rows(requests, scorer.max_length, max(LARGEST_TREE, 2 * len(alone[0].tree.ids)))
    ours = padded_tokens(sorted_batches(trees, tokens_per_batch))
    without_trees = padded_tokens(sorted_batches(alone, tokens_per_batch))
    without_order = padded_tokens(unsorted_batches(trees, tokens_per_batch))
    scored = sum(len(targets) for row in trees for targets in row.targets)
    shape, length = Shape.of(model.config, config.model.layer), ours // len(trees)
    head, whole_head = (forward_flops(shape, ours, length, positions) for positions in (scored, ours))
    table = Table("", "with", "without", "gain", title=f"{len(requests)} requests")
    for name, with_it, without in (
        ("shared beginnings: tokens", ours, without_trees),
        ("batches by length: tokens", ours, without_order),
        ("head at scored positions: GFLOP", head / 1e9, whole_head / 1e9),
        ("tokenised together: seconds", seconds["together"], seconds["one by one"]),
    ):
        table.add_row(name, f"{with_it:,.6g}", f"{without:,.6g}", f"{without / with_it:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
