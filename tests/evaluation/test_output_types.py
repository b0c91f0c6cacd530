"""Tasks of every output type of lm-eval, and chats: the same numbers as lm-eval's own evaluation of the same model."""

import json
import shutil
from dataclasses import replace

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tests.conftest import ROOT, metrics_of, read_metrics, write_jsonl
from unlearn.errors import UserError
from unlearn.evaluation.chat import Chat, encode_prompts
from unlearn.evaluation.harness import MaxLogitPlan, against_base, evaluate
from unlearn.evaluation.journal import Journals
from unlearn.evaluation.suite import load_suite
from unlearn.models.group import ModelGroup
from unlearn.models.loading import Source, load_tokenizer, load_whole
from unlearn.runs.evaluation import evaluate_checkpoint

TOY = ROOT / "unlearn/toy"
WAYS = {
    "generate_until": "generation_kwargs: {until: ['.'], max_gen_toks: 5, do_sample: false}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [' ']}]",
    "loglikelihood": "metric_list: [{metric: perplexity, aggregation: perplexity, higher_is_better: false}, "
    "{metric: acc, aggregation: mean, higher_is_better: true}]",
    "loglikelihood_rolling": "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, "
    "higher_is_better: false}]",
}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} \n{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def write_task(rows, kind, more, asked, target):
    """Write the task x_KIND, of this output type, over the rows of a file, beside it."""
    if kind == "loglikelihood_rolling":
        asked, target = "", "{{question}} {{answer}}"
    rows.with_name(f"{kind}.yaml").write_text(
        f"task: x_{kind}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\n"
        f'test_split: test\noutput_type: {kind}\ndoc_to_text: "{asked}"\ndoc_to_target: "{target}"\n'
        f"num_fewshot: 0\n{more}\n"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A task of each type, over six of the embedded world's facts."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = (TOY / "data/questions/retain.jsonl").read_text().splitlines()[:24:4]
    rows = [json.loads(line) for line in lines]
    facts = [{"question": r["question"], "answer": r["choices"][r["answer"]]} for r in rows]
    write_jsonl(folder / "facts.jsonl", facts)
    for name, more in WAYS.items():
        write_task(folder / "facts.jsonl", name, more, asked="Question: {{question}} Answer:", target=" {{answer}}")
    return folder


@pytest.fixture(scope="module")
def toy():
    source = Source(str(TOY / "model"))
    return load_whole(source), load_tokenizer(source)


@pytest.mark.parametrize("name", WAYS)
def test_every_output_type_is_evaluated_as_lm_eval_does(folder, toy, name):
    suite = load_suite({"retain": [f"x_{name}"]}, {"default": []}, include_path=str(folder))
    [answers] = evaluate(ModelGroup(toy[0]), toy[1], suite, label="base", tokens_per_batch=512)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    plain = lm_eval.simple_evaluate(
        HFLM(pretrained=toy[0], tokenizer=toy[1]), tasks=[f"x_{name}"], task_manager=manager, bootstrap_iters=0
    )
    wanted = {k.partition(",")[0]: v for k, v in plain["results"][f"x_{name}"].items() if isinstance(v, float)}
    assert wanted
    for metric, value in wanted.items():
        assert metrics_of(answers)[f"base/x_{name}/default/{metric}"] == pytest.approx(value, rel=1e-4)
    assert len(answers.samples) == 6
    if name == "generate_until":
        assert metrics_of(answers)[f"base/x_{name}/default/exact_match"] > 0.5


def test_a_second_filter_does_not_count_questions_twice(folder, toy, tmp_path):
    """As gsm8k has two: the first one's figures have the metric's name, the second one's lm-eval's."""
    text = (folder / "generate_until.yaml").read_text().replace("x_generate_until", "x_filters")
    word = "{filter: [{function: regex, regex_pattern: '(\\w+)'}, {function: take_first}], name: word}"
    never = word.replace("(\\w+)", "(never)").replace("name: word", "name: never")
    (tmp_path / "filters.yaml").write_text(f"{text}\nfilter_list: [{word}, {never}]\n")
    suite = load_suite({"retain": ["x_filters"]}, {"default": []}, include_path=str(tmp_path))
    [answers] = evaluate(ModelGroup(toy[0]), toy[1], suite, label="base", tokens_per_batch=512)
    assert len(answers.samples) == 6
    assert metrics_of(answers)["base/x_filters/default/exact_match"] > 0.5
    assert metrics_of(answers)["base/x_filters/default/exact_match,never"] == 0


def unlearned(answers):
    """The same answers as those of an unlearned model."""
    return replace(answers, samples=[replace(sample, model="unlearned") for sample in answers.samples])


def test_answers_that_are_not_right_or_wrong_are_not_compared(folder, toy):
    suite = load_suite({"retain": ["x_loglikelihood_rolling"]}, {"default": []}, include_path=str(folder))
    [answers] = evaluate(ModelGroup(toy[0]), toy[1], suite, label="base", tokens_per_batch=512)
    assert [sample.correct for sample in answers.samples] == [None] * 6
    assert against_base(answers, unlearned(answers), suite) == []


def test_an_accuracy_that_is_a_share_is_not_taken_for_right_or_wrong(folder, toy, tmp_path):
    """As in truthfulqa_mc2: the probability that the right options have together."""
    (tmp_path / "share.py").write_text("def results(doc, results):\n    return {'acc': len(doc['answer']) / 9}\n")
    text = (folder / "loglikelihood.yaml").read_text().replace("x_loglikelihood", "x_share")
    metrics = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"
    text = f"{text.partition('metric_list')[0]}process_results: !function share.results\n{metrics}\n"
    (tmp_path / "share.yaml").write_text(text)
    suite = load_suite({"retain": ["x_share"]}, {"default": []}, include_path=str(tmp_path))
    [answers] = evaluate(ModelGroup(toy[0]), toy[1], suite, label="base", tokens_per_batch=512)
    assert all(sample.correct is None for sample in answers.samples)
    mean = sum(sample.score for sample in answers.samples) / len(answers.samples)
    assert metrics_of(answers)["base/x_share/default/acc"] == pytest.approx(mean)
    assert against_base(answers, unlearned(answers), suite) == []
    # All shares are 1 with another model, or were before.
    judged = [replace(sample, correct=True) for sample in answers.samples]
    assert against_base(replace(answers, samples=judged), unlearned(answers), suite) == []


@pytest.mark.parametrize("name", WAYS)
def test_what_has_no_options_cannot_be_perturbed(folder, name):
    with pytest.raises(UserError, match=f"task x_{name}, question 0: perturbed queries need"):
        load_suite({"retain": [f"x_{name}"]}, {"default": [], "perturbed": ["a"]}, include_path=str(folder))


def test_generation_is_resumed_from_the_journal(folder, toy, tmp_path, monkeypatch):
    suite = load_suite({"retain": ["x_generate_until"]}, {"default": []}, include_path=str(folder))
    generated = []
    real = HFLM.generate_until

    def counted(self, requests, **how):
        if len(generated) == 2:
            raise KeyboardInterrupt
        generated.append(len(requests))
        return real(self, requests, **how)

    def ask(journals):
        [answers] = evaluate(ModelGroup(toy[0]), toy[1], suite, label="base", tokens_per_batch=1024, journals=journals)
        return metrics_of(answers)

    monkeypatch.setattr(HFLM, "generate_until", counted)
    with pytest.raises(KeyboardInterrupt):
        ask([Journals(tmp_path)])
    assert generated == [2, 2]
    generated.append(0)  # now nothing stops it
    again = ask([Journals(tmp_path)])
    assert generated == [2, 2, 0, 2]
    assert again == ask(None)


def test_a_run_is_asked_tasks_of_all_types(folder, tmp_path):
    home = evaluate_checkpoint(
        [
            "model=toy",
            "eval=none",
            f"eval.include_path={folder}",
            "eval.queries=[default]",
            f"output_root={tmp_path}",
            f"+eval.tasks.retain=[{','.join(f'x_{name}' for name in WAYS)}]",
        ]
    )
    metrics = read_metrics(home)
    assert {name.rpartition("/")[2] for name in metrics} >= {"exact_match", "perplexity", "word_perplexity"}


@pytest.fixture(scope="module")
def chatting(tmp_path_factory):
    """The toy model's tokenizer with a template that begins with BOS."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(TOY / "model", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Source(str(folder))


@pytest.mark.parametrize(("examples", "multiturn"), [(0, True), (2, True), (2, False)])
def test_chats_are_those_of_lm_eval_token_by_token(chatting, examples, multiturn, monkeypatch):
    model, tokenizer = load_whole(chatting), load_tokenizer(chatting)
    chat = Chat.of(tokenizer, "river harbour", multiturn)
    asked = {"include_path": str(TOY / "tasks"), "num_fewshot": examples}
    words = {"default": [], "perturbed": ["mitube", "sebifu"]}
    suite = load_suite({"retain": ["toy_retain"]}, words, limit=5, chat=chat, **asked)
    seen = []
    real = HFLM._loglikelihood_tokens

    def watch(self, requests, **how):
        seen.extend(requests)
        return real(self, requests, **how)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", watch)
    # Few-shot examples of tasks without a split for them are drawn otherwise than by lm-eval (`with_fair_examples`).
    if examples == 0:
        plain = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer),
            tasks=["toy_retain"],
            task_manager=TaskManager(include_path=str(TOY / "tasks"), include_defaults=False),
            limit=5,
            apply_chat_template=True,
            system_instruction="river harbour",
            fewshot_as_multiturn=multiturn,
            bootstrap_iters=0,
        )
        ours = [request.args for request in suite.instances("default")]
        assert sorted(ours) == sorted(pair for pair, _, _ in seen)
        [answers] = evaluate(ModelGroup(model), tokenizer, suite, label="base", tokens_per_batch=2048)
        value = plain["results"]["toy_retain"]["acc,none"]
        assert metrics_of(answers)["base/toy_retain/default/acc"] == value
        assert all((context + continuation).count(tokenizer.bos_token_id) == 1 for _, context, continuation in seen)
    for query in words:
        for prompt in suite.prompts(query, "toy_retain").values():
            assert prompt.startswith(f"{tokenizer.bos_token}system : river harbour")
            assert prompt.count("user :") == (examples + 1 if multiturn else 1)
            assert prompt.endswith("assistant :")


def test_maxlogit_of_chats_has_one_bos(chatting):
    tokenizer = load_tokenizer(chatting)
    bos = tokenizer.bos_token_id
    rows = encode_prompts(tokenizer, ["river", f"{tokenizer.bos_token}river", "river"])
    assert [row.count(bos) for row in rows] == [1, 1, 1]
    assert rows[0] == tokenizer("river")["input_ids"]
    suite = load_suite({"retain": ["toy_retain"]}, {"default": []}, include_path=str(TOY / "tasks"), limit=3,
                       chat=Chat.of(tokenizer, None, True))  # fmt: skip
    plan = MaxLogitPlan(["retain"], ["default"], 2)
    how = {"label": "base", "tokens_per_batch": 999, "maxlogit": plan}
    [answers] = evaluate(ModelGroup(load_whole(chatting)), tokenizer, suite, **how)
    assert metrics_of(answers)["base/toy_retain/default/maxlogit_mean"] > 0


def test_a_chat_is_part_of_a_runs_name_and_needs_a_template(conf, toy):
    from unlearn.config.identity import run_name

    plain, chat = conf("eval=toy"), conf("eval=toy", "eval.chat_template=true")
    assert run_name(plain) != run_name(chat)
    with pytest.raises(UserError, match="no chat template"):
        Chat.of(toy[1], None, True)
    with pytest.raises(UserError, match=r"eval\.system_instruction needs eval\.chat_template=true"):
        conf("eval=toy", "eval.system_instruction=Hello")
