"""What the schema accepts, what it refuses and in which words, and what identifies a run."""

import subprocess
import sys

import pytest

from unlearn.config.documents import check_documents
from unlearn.config.identity import identity, run_folder, run_name
from unlearn.config.schema import unshared
from unlearn.errors import UserError, nearest

BAD = {
    "rna.nu=-1": r"rna\.nu=-1 is not allowed: it must be a finite number >= 0",
    "rna.nu=nan": r"rna\.nu=nan is not allowed",
    "rna.nu=abc": r"rna\.nu: Value 'abc'.*could not be converted to Float\. Allowed: a number, as 0\.05",
    "train.steps=1.5": r"train\.steps: Value '1\.5'.*Integer\. Allowed: a whole number",
    "train.betas=2": r"train\.betas: .*Allowed: a list, as \[a,b\]",
    "model.trust_remote_code=perhaps": r"model\.trust_remote_code: Value 'perhaps'.*Allowed: true or false",
    "loss.alpha=-0.5": r"loss\.alpha=-0\.5 is not allowed: it must be a finite number >= 0",
    "model.layer=1": r"model\.layer=1 is not allowed: .*must be in 2\.\.7",
    "model.parameters=[]": r"model\.parameters=\[\] is not allowed: name at least one matrix, or null for the MLP",
    "model.layer=8": r"model\.layer=8 is not allowed: .*must be in 2\.\.7",
    "train.steps=0": r"train\.steps=0 is not allowed: it must be an integer >= 1",
    "train.lr=0": r"train\.lr=0 is not allowed",
    "train.betas=[0.9]": r"train\.betas=\[0\.9\] is not allowed: it must be two numbers",
    "method.c=0": r"method\.c=0 is not allowed: it must be a finite number > 0",
    "method.c=many": r"method\.c='many' is not allowed: it must be a number",
    "method._target_=os.system": r"method\._target_=os\.system is not allowed: it must name a class of unlearn",
    "method._target_=unlearn.errors.UserError": r"method\._target_=.* is not allowed: it must name a class of unlearn",
    "method._target_=unlearn.methods.RMUU": r"method\._target_=.*RMUU is .* Did you mean 'RMU'\? Allowed: DPO",
    "+method.callback={_target_: os.system}": r"method\.callback: unknown key\. RMU takes: c\.",
    "method.c={_target_: os.system}": r"method\.c=.* is not allowed: a method's arguments are numbers and names",
    "~method.c": r"method\.c: no value was given",
    "loss.mask=paddin": r"loss\.mask=paddin is not allowed\. Did you mean 'padding'\?",
    "rna.per=row": r"rna\.per=row is not allowed.*Allowed: token, text",
    "rna.where=gradients": r"rna\.where=gradients is not allowed\. Did you mean 'gradient'\? Allowed: retain_target",
    "rna.scale=sd": r"rna\.scale=sd is not allowed.*Allowed: std, variance",
    "data.on_exhausted=stop": r"data\.on_exhausted=stop is not allowed.*Allowed: error, cycle",
    "data.use=[bioo]": r"data\.use: unknown topic 'bioo'\. Did you mean 'bio'\? Allowed: bio, cyber",
    "data.use=[]": r"data\.use=\[\] is not allowed",
    "data.use=[bio,bio]": r"data\.use names topic 'bio' 2 times\. Steps take the topics in turn: name each",
    "data=jsonl": r"data=jsonl has no topics",
    "+data.topics.chem={forget: a.jsonl, retain: b.txt}": r"data\.topics\.chem\.max_length: no value was given",
    "data.topics.bio.max_length=0": r"data\.topics\.bio\.max_length=0 is not allowed",
    "~model.methods.rmu": r"method\.c: model 'toy' has no default value for method 'rmu'",
    "model=qwen3_8b": r"model 'qwen3_8b' has no default value for method 'rmu'; it has defaults for: adaptive_rmu",
    "train.schedule=linea": r"train\.schedule=linea is not allowed\. Did you mean 'linear'\?",
    "+eval.asked_of.perturbed=[retian]": r"eval\.asked_of\.perturbed=retian is not allowed\. Did you mean 'retain'\?",
    "+eval.asked_of.perturbd=[retain]": r"eval\.asked_of=perturbd is not allowed",
    "loss.alpha=much": r"loss\.alpha='much' is not allowed: it must be a number",
    "loss.alpha={bio: 1}": r"loss\.alpha has no value for topic 'cyber': give one number, or one for each topic",
    "loss.alpha={bio: 1, cyber: -1}": r"loss\.alpha\.cyber=-1 is not allowed: it must be a finite number >= 0",
    "loss.alpha={bio: 1, cyber: 1, cybr: 2}": r"loss\.alpha: unknown topic 'cybr'\. Did you mean 'cyber'\? Allowed",
    "eval.texts.words=7": r"eval\.texts\.words=7 is not allowed: it must be an integer >= 8",
    "data.topics.bio.retain_max_length=0": r"data\.topics\.bio\.retain_max_length=0 is not allowed",
    "eval.maxlogit.queries=[ngram-2]": r"eval\.maxlogit\.queries=ngram-2 is not allowed\. Allowed: default, pert",
    "train.recompute=yes": r"train\.recompute=yes is not allowed.*Allowed: auto, always, never",
    "eval.queries=[perturbd]": r"eval\.queries=perturbd is not allowed\. Did you mean 'perturbed'\?",
    "eval.forget_tokens=[]": r"eval\.forget_tokens is empty",
    "eval.limit=0": r"eval\.limit=0 is not allowed",
    "+rna.nuu=1": r"rna\.nuu: unknown key\. Did you mean 'nu'\?",
    "+nonsense=1": r"nonsense: unknown key",
    "~rna.nu": r"rna\.nu",
}


@pytest.mark.parametrize("override", BAD)
def test_refused_with_key_value_and_what_is_allowed(conf, override):
    with pytest.raises(UserError, match=BAD[override]):
        conf(override)


def test_maxlogit_needs_a_role_with_tasks(conf):
    with pytest.raises(
        UserError, match=r"eval\.maxlogit\.roles names role retain, which has no tasks \(eval\.tasks\.re"
    ):
        conf("eval=toy_paper", "eval.tasks.retain=[]")
    conf("eval=toy_paper", "eval.tasks.retain=[]", "eval.maxlogit.tokens=0")
    texts = conf("eval=real", "eval.maxlogit={roles: [retain_text], queries: [perturbed], tokens: 15}")
    assert texts.eval.maxlogit.roles == ["retain_text"]


def test_maxlogit_needs_queries_that_are_asked_of_its_role(conf):
    with pytest.raises(UserError, match=r"eval\.maxlogit: perturbed queries are not asked of role retain"):
        conf("eval=toy_paper", "+eval.asked_of.perturbed=[near]")


def test_all_problems_are_told_at_once(conf):
    with pytest.raises(UserError) as told:
        conf("rna.nu=-1", "loss.alpha=-1", "model.layer=0")
    assert [line.split("=")[0] for line in str(told.value).splitlines()] == ["rna.nu", "loss.alpha", "model.layer"]


def test_coefficients_come_from_the_model(conf):
    zephyr = conf("model=zephyr_7b_beta", "eval=none", "method=adaptive_rmu")
    assert (zephyr.method["beta"], zephyr.rna.nu, zephyr.loss.alpha, zephyr.train.lr) == (3.0, 0.08, 1200.0, 5e-5)
    assert conf("model=zephyr_7b_beta", "eval=none", "method=rsv").method["c"] == 10.0
    assert conf("model=zephyr_7b_beta", "eval=none", "rna=none").rna.nu == 0.0
    # Seed 0 is a seed, nu 0 is a value.
    assert conf("seed=0").seed == 0
    assert conf("rna.nu=0").rna.nu == 0.0


def test_identity_holds_what_determines_the_result_and_nothing_else(conf):
    base = run_name(conf())
    assert "where" not in identity(conf())["rna"]  # only placebos have it
    same = (
        "tracker=none",
        "output_root=elsewhere",
        "eval.tokens_per_batch=1",
        "model.path=/moved",
        "train.log_every=10",
    )
    assert {run_name(conf(override)) for override in same} == {base}
    other = ("rna.nu=0.7", "seed=1", "model.layer=4", "loss.mask=none", "train.steps=7", "eval.limit=5", "method.c=9")
    other += ("rna.where=gradient",)
    assert len({run_name(conf(override)) for override in other} | {base}) == len(other) + 1
    assert base.startswith("rmu-toy-")


def test_identity_does_not_hold_paths(conf):
    config = conf("+data.topics.chem={forget: /a/x.jsonl, retain: 'hub:a:b:c', max_length: 4}")
    assert "/a/x.jsonl" not in str(identity(config))
    assert "hub:a:b:c" in str(identity(config))


def test_folder_is_the_runs_own_or_the_users_choice(conf, tmp_path):
    config = conf(f"output_root={tmp_path}")
    assert run_folder(config) == tmp_path / "runs" / run_name(config)
    assert run_folder(conf(f"output_dir={tmp_path / 'mine'}")) == tmp_path / "mine"


def test_nearest():
    assert nearest("rmx", ["rmu", "rsv"]) == " Did you mean 'rmu'?"
    assert nearest("zzzz", ["rmu", "rsv"]) == ""


def test_the_paper_preset_switches_every_key_and_each_key_can_be_set_alone(conf):
    paper = conf("preset=paper", "method=adaptive_rmu", "experiment=zephyr_wmdp")
    assert (paper.loss.mask, paper.method["norm"], paper.train.precision) == ("none", "first_batch", "model")
    assert (paper.train.optimizer, paper.train.eps, paper.train.weight_decay) == ("adamw_published", 1e-6, 0.0)
    assert (paper.model.dtype, paper.model.attn_implementation, paper.rna.scale) == ("bfloat16", "eager", "std")
    assert (paper.data.topics["bio"].max_length, paper.data.topics["cyber"].max_length) == (512, 768)
    clean = conf("method=adaptive_rmu", "experiment=zephyr_wmdp")
    assert (clean.loss.mask, clean.method["norm"], clean.train.precision) == ("padding", "sample", "master")
    assert (clean.train.optimizer, clean.train.eps, clean.model.dtype) == ("adamw", 1e-8, "auto")
    assert conf("preset=paper", "loss.mask=padding").loss.mask == "padding"
    # A model may want another mask or schedule than the default's, not than the paper's.
    assert [conf(f"preset={p}").loss.mask for p in ("clean", "paper")] == ["padding_and_bos", "none"]
    assert [conf(f"preset={p}").train.schedule for p in ("clean", "paper")] == ["linear", "constant"]
    assert conf("model=zephyr_7b_beta", "eval=none", "data=wmdp").loss.mask == "padding"
    # The preset's name is no part of a run's identity: the keys are.
    keys = ("loss.mask=none", "train.schedule=linear")
    assert run_name(conf(*keys)) == run_name(conf(*keys, "preset.name=x"))
    assert run_name(conf("preset=paper")) != run_name(conf())


@pytest.mark.parametrize(
    ("method", "preset", "length"),
    [
        ("rsv", "paper", 768),
        ("rsv", "clean", 512),
        ("rmu", "paper", 512),
        *((method, "paper", 768) for method in ("npo", "simnpo", "dpo")),
    ],
)
def test_some_published_methods_cut_retain_documents_to_the_topics_length(conf, method, preset, length):
    config = conf("experiment=zephyr_wmdp", f"method={method}", f"preset={preset}")
    assert config.data.topics["cyber"].retain_max_length == length
    assert config.data.topics["bio"].retain_max_length == 512


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.optimizer=adam", "train.optimizer=adam is not allowed. Did you mean 'adamw'?"),
        ("method.norm=samples", "method.norm=samples is not allowed. Did you mean 'sample'?"),
    ],
)
def test_unknown_switches_are_named(conf, override, message):
    with pytest.raises(UserError) as error:
        conf("method=adaptive_rmu", override)
    assert message in str(error.value)


def test_arguments_of_methods_on_likelihoods_are_checked(conf):
    with pytest.raises(UserError, match=r"method\.retain=k is not allowed\. Did you mean 'kl'\? Allowed: kl, mse, nll"):
        conf("method=npo", "method.retain=k")
    with pytest.raises(UserError, match=r"method\.gamma=-1 is not allowed: it must be a finite number >= 0"):
        conf("method=simnpo", "method.gamma=-1")
    with pytest.raises(UserError, match=r"(?m)^rna\.where=gradient is not allowed with a method on likelihoods"):
        conf("method=npo", "rna.where=gradient")
    with pytest.raises(UserError, match=r"method\.retain=nll with RNA \(nu=0\.1\) is not allowed"):
        conf("method=grad_diff", "method.retain=nll", "rna.nu=0.1")
    conf("method=grad_diff", "method.retain=nll", "rna=none")


def test_what_the_published_code_did_goes_with_its_mask(conf):
    with pytest.raises(UserError, match=r"method\.published=maybe is not allowed: it must be true or false"):
        conf("method=npo", "method.published=maybe")
    with pytest.raises(UserError, match=r"method\.published=true needs loss\.mask=none, but loss\.mask=padding"):
        conf("method=npo", "method.published=true")
    for method in ("npo", "simnpo", "dpo", "grad_diff"):
        paper = conf(f"method={method}", "preset=paper")
        assert (paper.method["published"], paper.loss.mask) == (True, "none")


def test_a_models_own_alphas_may_be_of_topics_that_the_data_lack(conf):
    data = ("data=jsonl", "+data.topics.bio={forget: a.jsonl, retain: b.txt, max_length: 9}")
    assert conf("model=zephyr_7b_beta", "eval=none", "method=npo", *data).loss.alpha == {"bio": 50.0, "cyber": 50.0}


def test_alpha_may_be_each_topics_own_and_depend_on_method_and_retain_loss(conf):
    assert conf("loss.alpha={bio: 1, cyber: 2.5}").loss.alpha == {"bio": 1.0, "cyber": 2.5}
    zephyr = ("experiment=zephyr_wmdp", "method=simnpo")
    assert conf(*zephyr).loss.alpha == {"bio": 20.0, "cyber": 50.0}
    mse = conf(*zephyr, "method.retain=mse")
    assert (mse.loss.alpha, mse.train.steps, mse.train.lr) == ({"bio": 10.0, "cyber": 5.0}, 50, 2e-5)
    assert (conf().loss.alpha, conf("loss.alpha=10").loss.alpha) == (10.0, 10.0)
    assert run_name(conf("loss.alpha=10")) == run_name(conf("loss.alpha=10.0"))
    assert run_name(conf("method.c=3")) == run_name(conf("method.c=3.0")) != run_name(conf("method.c=3.5"))


def test_preferred_texts_are_no_part_of_a_name_and_separate_processes(conf):
    assert run_name(conf("method=dpo")) == run_name(conf("method=dpo", "method.preferred=other.txt"))
    assert list(unshared(conf("method=dpo"), conf("method=npo"))) == ["method.preferred"]
    assert not list(unshared(conf("method=npo"), conf("method=rmu")))


def test_a_configuration_is_checked_without_torch():
    """Its import takes seconds, also on the login node that starts a sweep."""
    code = (
        "import sys; from unlearn.config.compose import composed; from unlearn.config.settle import settle\n"
        "settle(composed(['method=dpo'])); assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


OWN = ("data=jsonl", "+data.topics.chem={forget: a.jsonl, retain: wiki.txt, max_length: 9}")


def test_the_evaluation_follows_the_data(conf):
    assert [conf(f"data={name}").eval.name for name in ("toy", "real")] == ["toy", "real"]
    assert conf("data=wmdp", "model=zephyr_7b_beta").eval.name == "wmdp"
    assert conf("data=wmdp", "eval=none").eval.name == "none"
    texts = conf(*OWN, "+data.topics.bio={forget: b.txt, retain: wiki.txt, max_length: 9}").eval.texts
    assert texts.corpora == {"retain": {"chem": "wiki.txt"}, "forget": {"chem": "a.jsonl", "bio": "b.txt"}}
    assert texts.last == 40
    assert conf(*OWN, "data.held_out=7", "data.text_column=body").eval.texts.last == 7
    assert conf(*OWN, "data.text_column=body").eval.texts.text_column == "body"


def test_held_out_texts_are_no_dialogues_and_not_trained_on(conf):
    with pytest.raises(UserError, match=r"eval=jsonl measures texts, but the documents are dialogues"):
        conf(*OWN, "data.chat_template=true")
    with pytest.raises(UserError, match=r"eval\.texts\.last=50 exceeds data\.held_out=40: training would use some"):
        conf(*OWN, "eval.texts.last=50")


def test_texts_of_ones_own_are_asked_without_an_evaluation(conf):
    assert conf("eval=none", "+eval.texts.corpora.retain.wiki=x.txt").eval.queries == ["default"]
    with pytest.raises(UserError, match=r"eval\.queries=\[\] asks none of eval\.tasks"):
        conf("eval=none", "+eval.texts.corpora.retain.wiki=x.txt", "eval.queries=[]")


def test_another_model_is_asked_about_the_embedded_world_only_if_the_user_says_so(conf):
    other = ("model=zephyr_7b_beta",)
    with pytest.raises(
        UserError, match=r"eval=toy asks about facts that only model=toy was taught, but model\.name=zep"
    ):
        conf(*other)
    assert run_name(conf(*other, "eval.for_model=null")).startswith("rmu-zephyr_7b_beta-")


def test_files_with_too_few_lines_are_refused_before_they_are_read(conf, tmp_path):
    for name, lines in (("a.jsonl", 12), ("wiki.txt", 50)):
        (tmp_path / name).write_text("text\n" * lines)
    topic = f"+data.topics.chem={{forget: {tmp_path}/a.jsonl, retain: {tmp_path}/wiki.txt, max_length: 9}}"
    own = ("data=jsonl", topic, "train.batch_size=2", "train.steps=5")
    check_documents(conf(*own, "data.held_out=2"))
    with pytest.raises(
        UserError, match=r"chem\.forget: .*a\.jsonl has 12 lines, but training needs 10 documents, and "
    ):
        check_documents(conf(*own, "data.held_out=3"))
    with pytest.raises(UserError, match=r"a\.jsonl has 12 lines, but training needs 14 documents\. Give"):
        check_documents(conf(*own, "data.held_out=0", "eval=none", "train.steps=7"))
    check_documents(conf(*own, "data.held_out=3", "data.on_exhausted=cycle"))
    with pytest.raises(UserError, match=r"a\.jsonl has 12 lines"):
        check_documents(conf(*own, "data.held_out=12", "data.on_exhausted=cycle"))
