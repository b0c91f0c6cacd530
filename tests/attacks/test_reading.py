"""Reading out and asking otherwise: what is hidden is found, what was never known is not; the model stays as it is."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM
from unlearn.evaluate.roles import role_means

from tests.attacks.test_attacks import SOURCE, TOY, accuracy, same, state
from tests.conftest import write_jsonl
from unlearn.attacks.asking import Continuation, FewShot, Rephrased, Shuffled
from unlearn.attacks.attack import Victim
from unlearn.attacks.lens import LogitLens
from unlearn.attacks.open_answers import OpenAnswers, repeated
from unlearn.attacks.probe import Probe
from unlearn.attacks.relearning import Relearning, adapters
from unlearn.errors import UserError
from unlearn.evaluate.suite import Suite, load_suite
from unlearn.models.architectures import decoder_layers
from unlearn.models.loading import load_tokenizer, load_whole

TASK = "toy_forget_bio"
ACC = f"unlearned/{TASK}/default/acc"


@pytest.fixture(scope="module")
def config(conf):
    return conf("eval=toy", f"eval.tasks={{forget:[{TASK}]}}", "eval.subset=160", "tracker=none")


@pytest.fixture(scope="module")
def suite():
    return load_suite({"forget": [TASK]}, {"default": []}, include_path=str(TOY / "tasks"), subset=160)


@pytest.fixture
def knowing(suite, config):
    """The toy model as a victim."""
    return Victim(load_whole(SOURCE), load_tokenizer(SOURCE), 3, suite=suite, config=config)


@pytest.fixture
def ignorant(knowing):
    """A model of the same shape that never knew anything."""
    torch.manual_seed(0)
    return replace(knowing, model=AutoModelForCausalLM.from_config(knowing.model.config).eval().requires_grad_(False))


@pytest.fixture
def scrambled(knowing):
    """The model with one more layer, whose output says nothing."""
    model = knowing.model
    last = copy.deepcopy(decoder_layers(model)[-1])
    last.self_attn.layer_idx += 1
    last.mlp.down_proj.weight.data = 50 * torch.randn(last.mlp.down_proj.weight.shape)
    decoder_layers(model).append(last)
    model.config.num_hidden_layers += 1
    return knowing


def found(attack, victim):
    """Level -> metrics, of all levels; the model stays as it was."""
    before = state(victim.model)
    levels = attack.levels_of(victim)
    metrics = dict(attack.measure(victim, levels))
    assert list(metrics) == list(levels)
    assert same(victim.model, before)
    return metrics


def test_the_lens_reads_what_the_last_layer_scrambles(scrambled, suite):
    last = scrambled.model.config.num_hidden_layers - 1
    said = accuracy(scrambled.model, suite)
    by_layer = {level: metrics[ACC] for level, metrics in found(LogitLens(), scrambled).items()}
    assert by_layer[last] == said < 0.5
    assert by_layer[last - 1] > 0.9
    assert len(decoder_layers(scrambled.model)) == scrambled.model.config.num_hidden_layers == last + 1
    assert accuracy(scrambled.model, suite) == said


def test_a_probe_reads_what_the_model_does_not_say(scrambled):
    last = scrambled.model.config.num_hidden_layers - 1
    by_layer = {level: metrics[ACC] for level, metrics in found(Probe(), scrambled).items()}
    assert by_layer[last - 1] > 0.9
    assert by_layer[0] < 0.7  # the answer is computed in later layers


def test_a_probes_figure_of_a_role_is_the_mean_over_the_tasks_of_which_a_question_is_measured(knowing):
    sizes = {f"subject_{n}": 1 + n % 8 for n in range(57)}  # the first four questions of each are trained on

    def task(size):
        asked = [SimpleNamespace(doc_id=n, doc=n, args=(f"soil river {n}", "")) for n in range(size)]
        return SimpleNamespace(instances=asked, doc_to_target=lambda n: n % 4)

    tasks = {"default": {"tasks": {name: task(size) for name, size in sizes.items()}}}
    victim = replace(knowing, suite=Suite(tasks, {"retain": ["mmlu"]}, {"mmlu": list(sizes)}, None))
    metrics = found(Probe([1]), victim)[1]
    measured = [name for name, size in sizes.items() if size > 4]
    expected = sum(metrics[f"unlearned/{name}/default/acc"] for name in measured) / len(measured)
    roles = Probe([1]).members(victim)
    assert roles == {"retain": measured}
    assert role_means(metrics, roles, "unlearned", "acc") == {("retain", "default"): pytest.approx(expected)}


def test_lens_and_probe_find_nothing_in_a_model_that_never_knew(ignorant):
    for attack in (LogitLens([1, 3]), Probe([1, 3])):
        assert all(metrics[ACC] < 0.45 for metrics in found(attack, ignorant).values())


def test_layers_that_are_not_there_are_refused(knowing):
    with pytest.raises(UserError, match=r"attack\.levels=\[3, 99\]: the model's layers are 0 to"):
        LogitLens([3, 99]).levels_of(knowing)


def test_the_lens_asks_each_layer_as_if_the_model_ended_there(knowing, suite):
    config, layers = knowing.model.config, decoder_layers(knowing.model)
    metrics = found(LogitLens([2, 0, 1]), knowing)
    behind = list(layers[2:])
    del layers[2:]
    config.num_hidden_layers = 2
    try:
        assert metrics[1][ACC] == accuracy(knowing.model, suite)
    finally:
        layers.extend(behind)
        config.num_hidden_layers = len(layers)


def test_answers_by_likelihood_get_round_a_refusal_to_say_letters(knowing, ignorant, suite):
    """The head is made to say A whatever is asked."""
    letter = knowing.tokenizer.encode(" A", add_special_tokens=False)[-1]

    def bias(_head, _args, logits):
        logits[..., letter] += 100
        return logits

    hook = knowing.model.get_output_embeddings().register_forward_hook(bias)
    silenced = accuracy(knowing.model, suite)
    asked = Continuation("Question: {{question.strip()}} Answer:")
    [metrics] = found(asked, knowing).values()
    hook.remove()
    [never] = found(asked, ignorant).values()
    assert silenced < 0.45
    assert metrics[ACC] > 0.8
    assert f"unlearned/{TASK}/default/acc_norm" in metrics
    assert never[ACC] < 0.45


def test_shuffled_options_keep_the_right_one(knowing, config):
    evaluation, form = Shuffled([7]).asked(config.eval, 7)
    manager = TaskManager(include_path=str(TOY / "tasks"), include_defaults=False)
    plain = manager.load([TASK])["tasks"][TASK]
    other = form(plain)
    before, after = list(plain.eval_docs), list(other.eval_docs)
    assert evaluation is config.eval
    assert all(sorted(a["choices"]) == sorted(b["choices"]) for a, b in zip(before, after, strict=True))
    rights = [[d["choices"][d["answer"]] for d in documents] for documents in (before, after)]
    assert rights[0] == rights[1]
    moved = sum(a["answer"] != b["answer"] for a, b in zip(before, after, strict=True))
    assert moved > len(before) / 2
    [metrics] = found(Shuffled([7]), knowing).values()
    assert metrics[ACC] > 0.9


def test_few_shot_examples_are_answered_and_never_the_question_itself(config, knowing):
    evaluation, form = FewShot([3]).asked(config.eval, 3)
    assert form is None
    few = load_suite(evaluation.tasks, {"default": [], "perturbed": ["mitube", "sebifu"]}, num_fewshot=3,
                     include_path=str(TOY / "tasks"), subset=160)  # fmt: skip
    for query in ("default", "perturbed"):
        for prompt in few.prompts(query, TASK).values():
            *examples, asked = prompt.split("The following are")[1:]
            questions = [part.split("\n\n")[1].split("\n")[0] for part in (*examples, asked)]
            assert len(examples) == 3
            assert all(example.rstrip()[-2:] in (" A", " B", " C", " D") for example in examples)
            assert questions[-1] not in questions[:-1]
    [metrics] = found(FewShot([1]), knowing).values()
    assert 0 <= metrics[ACC] <= 1


def test_rephrased_questions_are_other_tasks(knowing):
    assert "attack.tasks" in Rephrased({}).why_not(knowing)
    attack = Rephrased({"forget": ["toy_forget_cyber"]})
    assert attack.why_not(knowing) is None
    [metrics] = found(attack, knowing).values()
    assert metrics["unlearned/toy_forget_cyber/default/acc"] > 0.9
    with pytest.raises(UserError, match="role"):
        Rephrased(["toy_forget_cyber"])


def test_open_answers_tell_knowledge_from_nonsense(knowing, ignorant):
    attack = OpenAnswers([6], questions=40, prompt="Question: {{question.strip()}} Answer:")
    [known] = found(attack, knowing).values()
    base = knowing.model

    class Base:
        def __enter__(self):
            self.before = {name: p.data for name, p in ignorant.model.named_parameters()}
            for name, parameter in ignorant.model.named_parameters():
                parameter.data = base.get_parameter(name).data

        def __exit__(self, *_):
            for name, parameter in ignorant.model.named_parameters():
                parameter.data = self.before[name]

    [never] = found(attack, replace(ignorant, base=Base)).values()
    named = f"unlearned/{TASK}/default"
    assert known[f"{named}/rouge"] > 3 * never[f"{named}/rouge"]
    assert known[f"{named}/nats"] + 1 < never[f"{named}/nats"]
    assert known[f"{named}/base_nats"] + 1 < never[f"{named}/base_nats"]  # nonsense, says the base model
    assert 0 <= never[f"{named}/repeated"] <= 1


def test_the_share_of_repetitions():
    assert repeated([1, 2, 3, 4]) == 0
    assert repeated([1, 1, 1, 1, 1]) == pytest.approx(2 / 3)
    assert repeated([1, 2]) == 0


def test_questions_are_needed(tiny_llama):
    victim = Victim(tiny_llama, None, 3)
    for attack in (Probe(), FewShot([1]), Continuation(), Shuffled([0]), OpenAnswers([5])):
        assert "multiple-choice" in attack.why_not(victim)
    assert LogitLens().why_not(victim) is None


def test_adapters_are_all_that_lora_trains(knowing):
    corpora = {"bio": {"forget": str(TOY / "data/forget-bio.jsonl"), "retain": str(TOY / "data/retain.jsonl")}}
    victim = replace(knowing, corpora=corpora)
    before = state(victim.model)
    names = set(before)
    attack = Relearning([4], parameters="lora", documents=4, lr=1e-2)
    logits = []
    ids_BT = torch.arange(3, 11)[None]
    plain = victim.model(ids_BT).logits
    for _ in attack.stages(victim):
        logits.append(victim.model(ids_BT).logits)
        own = {name.replace(".base_layer", ""): value for name, value in victim.model.state_dict().items()}
        assert all(torch.equal(own[name], before[name]) for name in names)
    assert not torch.equal(logits[0], plain)
    assert set(victim.model.state_dict()) == names
    assert same(victim.model, before)
    assert torch.equal(victim.model(ids_BT).logits, plain)
    assert attack.uses(victim)["seed"] == 0


def test_adapters_are_drawn_from_the_seed(knowing):
    drawn = []
    for seed in (0, 0, 1):
        with adapters(replace(knowing, seed=seed), 2) as trained:
            drawn.append(torch.cat([p.detach().flatten() for p in trained]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_texts_in_another_language_are_not_taught(knowing, tmp_path):
    file = write_jsonl(tmp_path / "other.jsonl", [{"text": "Ribosomes translate messenger RNA into proteins."}] * 3)
    assert "does not know the texts" in Relearning([1], texts=str(file), documents=2).why_not(knowing)
