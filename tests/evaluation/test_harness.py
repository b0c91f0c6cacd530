"""Asking a model: lm-eval's questions and accuracies, our perturbation, paired tests, MaxLogit."""

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from embedded_world import world as w
from tests.conftest import ROOT, metrics_of
from unlearn.analysis.compare import by_place, compare
from unlearn.config.schema import TextConfig
from unlearn.errors import UserError
from unlearn.evaluation.harness import MaxLogitPlan, against_base, evaluate
from unlearn.evaluation.maxlogit import continue_greedily, max_logits
from unlearn.evaluation.suite import load_suite
from unlearn.evaluation.texts import load_passages
from unlearn.evaluation.tokens import read_tokens
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.records.answers import Answers
from unlearn.records.names import text_tasks
from unlearn.records.samples import read_samples
from unlearn.records.scores import read_scores
from unlearn.statistics.paired import paired

TOY = ROOT / "unlearn/toy"
TOKENS = read_tokens(str(TOY / "data/forget_tokens.txt"))
SOURCE = Source(str(TOY / "model"))


def suite_of(*names, queries=("default", "perturbed"), **settings):
    words = {query: [] if query == "default" else TOKENS for query in queries}
    return load_suite({"retain": list(names)}, words, **({"include_path": str(TOY / "tasks")} | settings))


def documents(suite, query, name):
    return list(suite.tasks[query]["tasks"][name].eval_docs)


def test_default_and_perturbed_questions_differ_in_one_wrong_option():
    suite = suite_of("toy_retain", "toy_forget_bio")
    for name in ("toy_retain", "toy_forget_bio"):  # nothing limits perturbation to retain sets
        asked = list(zip(documents(suite, "default", name), documents(suite, "perturbed", name), strict=True))
        assert len(asked) in (576, 384)
        for default, perturbed in asked:
            pairs = zip(default["choices"], perturbed["choices"], strict=True)
            [(place, token)] = [(i, b) for i, (a, b) in enumerate(pairs) if a != b] or [(None, None)]
            if place is not None:  # a forget question may get the very word that it had
                assert place != default["answer"]
                assert token in TOKENS


def test_the_perturbation_is_seeded():
    one, same, other = (documents(suite_of("toy_retain", seed=s), "perturbed", "toy_retain") for s in (0, 0, 1))
    assert one == same
    assert one != other


def test_accuracies_are_those_of_a_plain_loop_over_whole_prompts():
    """One forward pass a question; the answer is the likeliest of the four letters."""
    model, tokenizer = load_whole(SOURCE), load_tokenizer(SOURCE)
    suite = suite_of("toy_forget_cyber", limit=40)
    [answers] = evaluate(ModelGroup(model), tokenizer, suite, label="base", tokens_per_batch=500)
    letters = tokenizer.convert_tokens_to_ids(list(w.LETTERS))
    for query in ("default", "perturbed"):
        right = []
        for question in documents(suite, query, "toy_forget_cyber")[:40]:
            with torch.no_grad():
                logits_V = model(**tokenizer(w.prompt(question), return_tensors="pt")).logits[0, -1]
            right.append(int(logits_V[letters].argmax()) == question["answer"])
        name = f"base/toy_forget_cyber/{query}"
        assert metrics_of(answers)[f"{name}/acc"] == sum(right) / 40
        assert [sample.correct for sample in answers.samples if sample.query == query] == right
        p = sum(right) / 40
        assert metrics_of(answers)[f"{name}/acc_stderr"] == pytest.approx((p * (1 - p) / 39) ** 0.5)


def test_samples_are_written_and_read(tmp_path):
    suite = suite_of("toy_retain", queries=("default",), limit=3)
    [answers] = evaluate(
        ModelGroup(load_whole(SOURCE)), load_tokenizer(SOURCE), suite, label="unlearned", tokens_per_batch=100
    )
    answers.write(tmp_path)
    samples = read_samples(tmp_path)
    assert samples == answers.samples
    assert [(s.model, s.role, s.task, s.query, s.id) for s in samples] == [
        ("unlearned", "retain", "toy_retain", "default", number) for number in range(3)
    ]
    assert all(len(s.loglikelihoods) == 4 and s.loglikelihoods[s.choice] == max(s.loglikelihoods) for s in samples)
    assert len({s.question for s in samples}) == 3
    assert read_scores(tmp_path) == answers.scores


def test_some_queries_are_asked_of_some_roles_only(tmp_path):
    """A task of an asked role is asked as it would be alone; a group without all of its tasks has no accuracy."""
    (tmp_path / "all.yaml").write_text(
        "group: all\ntask: [toy_retain, toy_near_bio]\naggregate_metric_list: [{metric: acc}]\n"
    )
    for file in (TOY / "tasks").iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    roles = {"retain": ["toy_retain"], "near": ["toy_near_bio"], "both": ["all"]}
    words = {"default": [], "perturbed": TOKENS, "control": ["soil"]}
    settings = {"include_path": str(tmp_path), "limit": 5}
    suite = load_suite(roles, words, asked_of={"control": ["retain"]}, **settings)
    whole = load_suite(roles, words, **settings)
    group, tokenizer = ModelGroup(load_whole(SOURCE)), load_tokenizer(SOURCE)
    some, every = (evaluate(group, tokenizer, s, label="base", tokens_per_batch=500)[0] for s in (suite, whole))
    assert some.scores == [score for score in every.scores if score.query != "control" or score.role == "retain"]
    assert {"near", "both"} == {score.role for score in every.scores if score not in some.scores}
    assert {(s.role, s.task) for s in some.samples if s.query == "control"} == {("retain", "toy_retain")}
    compared = against_base(some, replace_label(some), suite)
    assert ("both", "all", "perturbed", "base") in {(s.role, s.task, s.query, s.against) for s in compared}
    assert {score.role for score in compared if score.query == "control"} == {"retain"}


def test_a_query_of_roles_without_tasks_is_left_out():
    words = {"default": [], "control": ["soil"]}
    roles = {"retain": [], "near": ["toy_near_bio"]}
    suite = load_suite(roles, words, asked_of={"control": ["retain"]}, include_path=str(TOY / "tasks"), limit=2)
    assert list(suite.tasks) == ["default"]


def test_a_task_whose_documents_lack_the_column_of_their_fact_is_told_before_it_is_asked(tmp_path):
    for file in (TOY / "tasks").iterdir():
        if file.is_file():
            text = file.read_text().replace("fact: question", "fact: subjekt")
            (tmp_path / file.name).write_text(text)
    with pytest.raises(
        UserError, match=r"toy_retain: metadata\.fact is 'subjekt'; its documents have question, subject"
    ):
        load_suite({"retain": ["toy_retain"]}, {"default": []}, include_path=str(tmp_path), limit=2)


def replace_label(answers):
    """What a base model answered, as an unlearned one's answers."""
    return Answers([], [replace(sample, model="unlearned") for sample in answers.samples])


def test_no_tasks_no_suite():
    assert suite_of().tasks == {}


def test_a_task_whose_data_cannot_be_had_is_a_clear_error(tmp_path):
    (tmp_path / "broken.yaml").write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs: {data_files: /nowhere.json}\ntest_split: train\n"
        "output_type: multiple_choice\ndoc_to_text: x\ndoc_to_choice: [A]\ndoc_to_target: 0\n"
    )
    with pytest.raises(UserError, match=r"eval\.tasks: cannot load the data of task 'broken'"):
        suite_of("broken", include_path=str(tmp_path))


def test_differences_are_paired_by_question_for_tasks_and_models():
    model, tokenizer = load_whole(SOURCE), load_tokenizer(SOURCE)
    suite = suite_of("toy_retain", "toy_near_bio", limit=30)
    [base] = evaluate(ModelGroup(model), tokenizer, suite, label="base", tokens_per_batch=2000)
    for layer in range(8):
        model.get_parameter(f"model.layers.{layer}.self_attn.o_proj.weight").data.zero_()
    [unlearned] = evaluate(ModelGroup(model), tokenizer, suite, label="unlearned", tokens_per_batch=2000)
    for task in ("toy_retain", "toy_near_bio"):
        right = {
            (label, query): [s.correct for s in answers.samples if (s.task, s.query) == (task, query)]
            for label, answers in (("base", base), ("unlearned", unlearned))
            for query in ("default", "perturbed")
        }
        # The world asks about a near fact in two questions with other options, and about a retained one in one.
        facts = [s.item for s in base.samples if (s.task, s.query) == (task, "perturbed")]
        assert (len(facts), len(set(facts))) == (30, 15 if task == "toy_near_bio" else 30)
        for label, answers in (("base", base), ("unlearned", unlearned)):
            expected = paired(right[label, "default"], right[label, "perturbed"], facts)
            assert metrics_of(answers)[f"{label}/{task}/perturbed/default_difference"] == expected.difference
            assert metrics_of(answers)[f"{label}/{task}/perturbed/default_p"] == expected.p
        compared = metrics_of(Answers(against_base(base, unlearned, suite), []))
        for query in ("default", "perturbed"):
            expected = paired(right["base", query], right["unlearned", query], facts)
            assert compared[f"unlearned/{task}/{query}/base_low"] == expected.low
            assert compared[f"unlearned/{task}/{query}/base_difference"] < 0


def test_max_logits_are_those_of_greedy_decoding_one_query_at_a_time():
    model, tokenizer = load_whole(SOURCE), load_tokenizer(SOURCE)
    suite = suite_of("toy_retain", limit=5)
    plan = MaxLogitPlan(["retain"], ["perturbed"], 4)
    [answers] = evaluate(ModelGroup(model), tokenizer, suite, label="base", tokens_per_batch=300, maxlogit=plan)
    asked = [sample for sample in answers.samples if sample.query == "perturbed"]
    assert [sample.id for sample in asked] == list(range(5))
    assert all(sample.maxlogits is None for sample in answers.samples if sample.query == "default")
    expected = []
    for question in documents(suite, "perturbed", "toy_retain")[:5]:
        ids_BT = tokenizer(w.prompt(question), return_tensors="pt").input_ids
        for _ in range(4):
            with torch.no_grad():
                largest, token = model(ids_BT).logits[0, -1].max(dim=-1)
            expected.append((token.item(), largest.item()))
            ids_BT = torch.cat([ids_BT, token.view(1, 1)], dim=1)
    assert [token for sample in asked for token in sample.maxlogit_tokens] == [token for token, _ in expected]
    values = [value for _, value in expected]
    assert [value for sample in asked for value in sample.maxlogits] == pytest.approx(values, abs=1e-4)
    assert metrics_of(answers)["base/toy_retain/perturbed/maxlogit_mean"] == pytest.approx(sum(values) / 20, abs=1e-4)
    assert metrics_of(answers)["base/toy_retain/perturbed/maxlogit_p50"] == pytest.approx(
        torch.tensor(values).quantile(0.5).item(), abs=1e-3
    )


def test_prompts_longer_than_the_context_lose_their_beginning(capsys):
    """Positions of GPT-2 are learned: there is none beyond the last one."""
    tokenizer = load_tokenizer(SOURCE)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    long, end = "the river " * 20, "of the soil and the river of the soil of the harbour"
    prompts = [f"{long}{end}", "the soil"]
    cut, short = max_logits(ModelGroup(model), tokenizer, prompts, count=5, tokens_per_batch=100)[0].values_NK
    assert "MaxLogit: 1 prompts are too long for the model's context" in capsys.readouterr().err.replace("\n", " ")
    ids_BT = tokenizer(prompts[0], return_tensors="pt").input_ids[:, -12:]
    expected = continue_greedily(model, ids_BT.tolist(), 5)[0][0]
    assert cut.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert len(short) == 5


def test_max_logits_of_held_out_texts_follow_the_whole_text(tmp_path):
    model, tokenizer = load_whole(SOURCE), load_tokenizer(SOURCE)
    (tmp_path / "texts.txt").write_text("the colour of the red stone is red and of the blue one\n" * 2)
    corpora = {"retain": {"wiki": str(tmp_path / "texts.txt")}}
    passages = load_passages(TextConfig(corpora), {"default": [], "perturbed": ["virus"]})
    suite = load_suite({}, {}, passages=passages, text_roles=text_tasks(corpora))
    plan = MaxLogitPlan(["retain_text"], ["perturbed"], 2)
    [answers] = evaluate(ModelGroup(model), tokenizer, suite, label="base", tokens_per_batch=300, maxlogit=plan)
    first = next(sample for sample in answers.samples if sample.query == "perturbed")
    [passage, _] = passages["perturbed"]["retain_text_wiki"]
    text = passage.beginning + passage.rest
    assert "virus. " in text
    assert text.endswith("blue one")
    with torch.no_grad():
        largest, token = model(tokenizer(text, return_tensors="pt").input_ids).logits[0, -1].max(dim=-1)
    assert (first.id, first.maxlogit_tokens[0]) == (0, token.item())
    assert first.maxlogits[0] == pytest.approx(largest.item(), abs=1e-4)
    assert "base/retain_text_wiki/perturbed/maxlogit_std" in metrics_of(answers)
    assert "base/retain_text_wiki/default/maxlogit_mean" not in metrics_of(answers)


def test_a_tag_is_no_task(tmp_path):
    for file in (TOY / "tasks").iterdir():
        (tmp_path / file.name).write_text(f"{file.read_text()}\ntag: every\n")
    with pytest.raises(UserError, match=r"'every' is a tag, .* name tasks or groups, here \[toy_forget_bio, "):
        suite_of("every", include_path=str(tmp_path))


def test_a_task_of_two_roles_does_not_weigh_more_in_either(tmp_path):
    """As MMLU and the subjects near to what is forgotten: of those more questions are asked than of others."""
    (tmp_path / "all.yaml").write_text(
        "group: all\ntask: [toy_retain, toy_near_bio]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    for file in (TOY / "tasks").iterdir():
        (tmp_path / file.name).symlink_to(file)
    roles, queries = {"retain": ["all"], "near": ["toy_near_bio"]}, {"default": [], "perturbed": TOKENS}
    suite = load_suite(roles, queries, include_path=str(tmp_path), subset=60)
    sizes = {name: len(documents(suite, "default", name)) for name in ("toy_retain", "toy_near_bio")}
    own = suite.drawn["retain"]["toy_near_bio"]
    assert len(own) == pytest.approx(60 * sizes["toy_near_bio"] / sum(sizes.values()), abs=1)
    assert len(suite.samples["toy_near_bio"]) >= 60 > 2 * len(own)
    group, tokenizer = ModelGroup(load_whole(SOURCE)), load_tokenizer(SOURCE)
    [answers] = evaluate(group, tokenizer, suite, label="base", tokens_per_batch=4000)
    acc = {name: metrics_of(answers)[f"base/{name}/perturbed/acc"] for name in ("all", *sizes)}
    assert acc["all"] == pytest.approx(sum(acc[n] * size for n, size in sizes.items()) / sum(sizes.values()))
    assert len(answers.values("retain", suite.leaves["all"], "default")) == 60
    assert len(answers.values("near", ["toy_near_bio"], "default")) >= 60
    samples = by_place(answers.samples, "base")
    assert compare(samples, samples).results["retain", "default"].questions == 60
    questions = {(s.role, s.task, s.query): s.n for s in answers.scores if s.measure == "acc" and s.against is None}
    assert questions["retain", "toy_near_bio", "default"] == len(suite.samples["toy_near_bio"])  # of both roles


def test_a_subset_of_fewer_questions_than_tasks_is_one_of_each_and_said(capsys):
    tasks = ("toy_retain", "toy_near_bio", "toy_forget_bio")
    suite = suite_of(*tasks, queries=("default",), subset=2)
    assert [len(suite.samples[name]) for name in tasks] == [1, 1, 1]
    assert "Role retain is asked 3 questions, not 2" in capsys.readouterr().err
    suite_of(*tasks, queries=("default",), subset=3)
    assert capsys.readouterr().err == ""


def test_questions_that_choose_and_those_that_judge_share_no_fact():
    def numbers(task, part, **settings):
        return suite_of(task, queries=("default",), part=part, **settings).samples[task]

    choosing, judging = (numbers("toy_forget_bio", part) for part in ("choosing", "judging"))
    assert sorted(choosing + judging) == list(range(384))
    facts = [[number // 4 for number in part] for part in (choosing, judging)]  # four questions ask about one
    assert (len({*facts[0]}), {*facts[0]} & {*facts[1]}) == (24, set())
    assert numbers("toy_forget_bio", "choosing", seed=1) != choosing
    assert numbers("toy_forget_bio", "choosing", limit=10) == choosing[:10]
    few = numbers("toy_retain", "judging", subset=30)
    assert len(few) == 30
    assert {*few} < {*numbers("toy_retain", "judging")}


def test_a_subset_is_drawn_from_all_tasks_of_a_role_in_proportion():
    suite = suite_of("toy_retain", "toy_near_bio", "toy_forget_bio", subset=70)
    sizes = {name: len(documents(suite, "default", name)) for name in suite.leaves}
    total = sum(sizes.values())
    assert sum(map(len, suite.samples.values())) == 70
    for name, numbers in suite.samples.items():
        assert abs(len(numbers) - 70 * sizes[name] / total) < 1
        assert sorted(set(numbers)) == numbers
    again, other = (suite_of("toy_retain", subset=20, seed=seed).samples["toy_retain"] for seed in (0, 1))
    assert again == suite_of("toy_retain", subset=20).samples["toy_retain"]
    assert again != other
    model, tokenizer = load_whole(SOURCE), load_tokenizer(SOURCE)
    [part] = evaluate(ModelGroup(model), tokenizer, suite, label="base", tokens_per_batch=4000)
    [whole] = evaluate(ModelGroup(model), tokenizer, suite_of("toy_forget_bio"), label="base", tokens_per_batch=4000)
    everyone = {s.id: s for s in whole.samples if s.query == "perturbed"}
    for sample in part.samples:
        if (sample.task, sample.query) == ("toy_forget_bio", "perturbed"):
            assert (sample.choice, sample.question) == (everyone[sample.id].choice, everyone[sample.id].question)
