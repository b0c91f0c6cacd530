"""Assumption 4.2, Theorems 4.3 and 5.2: planted noise is found, formulas agree with simulation, mistakes are told."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from tests.conftest import ROOT
from unlearn.cli.main import main
from unlearn.errors import UserError
from unlearn.experiment import run_together
from unlearn.models.architectures import parameter_count
from unlearn.paper.theory import theorem_4_3, theorem_5_2
from unlearn.paper.theory.assumptions import describe, isotropy, isotropy_test, mean_test, normality
from unlearn.paper.theory.finished_run import load_suite_of, plain_kernels, read_run
from unlearn.paper.theory.measure import Effort, theory
from unlearn.paper.theory.predicted import Predicted, States
from unlearn.paper.theory.theorem_4_3 import covariance_errors, noise_and_output, one_question
from unlearn.paper.theory.theorem_5_2 import against, exact, injected, linear, published, rejected

IDS, LAYER = [3, 7, 11, 2, 9], 3


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def tiny_llama(tiny_llama):
    """With the kernels that runs are measured with."""
    return plain_kernels(tiny_llama)


@pytest.fixture
def linear_above(tiny_llama):
    """Nothing but the head above the cut: the layers there add nothing, and there is no norm."""
    for layer in tiny_llama.model.layers[LAYER + 1 :]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    tiny_llama.model.norm = nn.Identity()
    return tiny_llama


# The predicted position


def test_what_is_added_reaches_only_the_predicted_position_at_layer_l(tiny_llama):
    at, added_BD = Predicted(tiny_llama, LAYER, IDS), gaussian(3, 16).float()

    def add(_layer, _args, h_BTD):
        seen.append(h_BTD[:, -1].clone())
        return torch.cat([h_BTD[:, :-1], h_BTD[:, -1:] + added_BD[:, None]], dim=1)

    seen = []
    hook = tiny_llama.model.layers[LAYER].register_forward_hook(add)
    whole_BV = tiny_llama(input_ids=torch.tensor([IDS] * 3)).logits[:, -1]
    hook.remove()
    torch.testing.assert_close(at.output(added_BD), whole_BV, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at.output(added_BD), whole_BV, rtol=1e-4, atol=1e-5)  # a step leaves the cache as it was
    torch.testing.assert_close(at.state(), seen[0][0], rtol=1e-4, atol=1e-5)


def test_jvp_and_vjp_are_the_derivative_and_each_others_transpose(tiny_llama):
    at = Predicted(tiny_llama, LAYER, IDS)
    z_BD, r_BV = gaussian(2, 16).float(), gaussian(2, 50, seed=1).float()
    step = 1e-2
    differences_BV = (at.output(step * z_BD) - at.output(-step * z_BD)) / (2 * step)
    pushed_BV, pulled_BD = at.pushed(z_BD), at.pulled(r_BV)
    torch.testing.assert_close(pushed_BV, differences_BV, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close((r_BV * pushed_BV).sum(dim=1), (pulled_BD * z_BD).sum(dim=1), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_the_loss_is_that_of_the_answer(tiny_llama):
    at = Predicted(tiny_llama, LAYER, IDS)
    z_1D = gaussian(1, 16).float()
    loss_1, g_1D = at.loss_and_gradient(at.nothing_1D, answer=4)
    expected = -at.output(at.nothing_1D).double().log_softmax(dim=-1)[0, 4]
    assert loss_1.item() == pytest.approx(expected.item(), rel=1e-9)
    slope = (at.loss(1e-3 * z_1D, 4) - at.loss(-1e-3 * z_1D, 4)).item() / 2e-3
    assert (g_1D @ z_1D.T).item() == pytest.approx(slope, rel=1e-2)


# Assumption 4.2


def test_planted_noise_is_estimated():
    found = describe(0.5 * gaussian(1000, 24), directions=16, seed=0)
    assert found["eta"]["mean"] == pytest.approx(0.25, rel=0.03)
    assert found["eta"]["low"] < 0.25 < found["eta"]["high"]
    assert abs(found["mean"]["share"]) < 0.01
    assert found["mean"]["p"] > 0.05
    assert found["isotropy"]["p"] > 0.05
    assert all(tested["rejected"] == 0 for tested in found["normality"].values())


def test_a_common_shift_is_told_from_noise():
    d_ND = gaussian(500, 8) + 1.0  # the mean's square is half of the mean square
    found = describe(d_ND, directions=4, seed=0)
    assert found["mean"]["share"] == pytest.approx(0.5, abs=0.03)
    assert found["mean"]["p"] < 0.01
    assert found["eta"]["mean"] == pytest.approx(2, rel=0.05)
    assert mean_test(gaussian(500, 8), 0)["p"] > 0.05
    few = [mean_test(gaussian(8, 8, seed=s), 0)["share"] for s in range(200)]
    assert np.mean(few) == pytest.approx(0, abs=0.02)  # |mean|^2 as it is would be an eighth


def test_isotropy_by_hand_and_without_bias():
    """Variances 25 and nine times 1: (25 + 9)^2 / (625 + 9) = 1.823 directions of ten."""
    scale_D = torch.tensor([5.0] + 9 * [1.0], dtype=torch.float64)
    found = isotropy(gaussian(4000, 10) * scale_D + 3)  # a mean is not part of the covariance
    assert 10 * found == pytest.approx(1.823, rel=0.05)
    few = [1 / isotropy(gaussian(20, 60, seed=s)) for s in range(200)]  # fewer questions than dimensions
    assert np.mean(few) == pytest.approx(1, abs=0.03)


def test_planted_anisotropy_is_told_from_isotropic_noise():
    scale_D = torch.ones(40, dtype=torch.float64)
    assert isotropy_test(0.1 * gaussian(60, 40), 0)["p"] > 0.05
    scale_D[:4] = 3
    assert isotropy_test(gaussian(60, 40) * scale_D, 0)["p"] < 0.01


def test_directions_that_are_not_normal_are_found():
    rng = np.random.default_rng(0)
    x_NK = rng.standard_normal((300, 40))
    x_NK[:, :10] = rng.exponential(size=(300, 10))
    assert normality(x_NK)["rejected"] == pytest.approx(0.25)


def test_normal_directions_keep_their_false_discovery_rate():
    """Of normal samples at most one in twenty may have any rejection; without a correction most would have one."""
    rng = np.random.default_rng(0)
    found = [normality(rng.standard_normal((60, 40))) for _ in range(100)]
    assert sum(f["rejected"] > 0 for f in found) <= 10


# Theorem 4.3


def test_above_a_linear_model_the_covariance_is_eta_times_a_a_transposed(linear_above):
    at, A_VD = Predicted(linear_above, LAYER, IDS), linear_above.lm_head.weight
    z_SD, r_KV = gaussian(4000, 16).float(), gaussian(3, 50, seed=1).float()
    torch.testing.assert_close(at.pushed(z_SD), z_SD @ A_VD.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(at.pulled(r_KV), r_KV @ A_VD, rtol=1e-4, atol=1e-4)
    along_SK, residual, size = noise_and_output(at, 0.25, z_SD, z_SD @ A_VD.T, r_KV.T, batch=1000)
    assert residual < 1e-9 * size
    errors = covariance_errors(along_SK, 0.25 * r_KV @ A_VD @ A_VD.T @ r_KV.T)
    assert errors["variance"] == pytest.approx(1, abs=0.06)
    assert errors["covariance"] < 2 * errors["covariance_by_chance"] < 0.08
    assert abs(errors["mean"]) < 0.002
    for found in one_question(at, 0.1, draws=500, directions=4, batch=100, key=("test",)):
        assert found["nonlinear"] < 1e-6
        assert found["variance"] == pytest.approx(1, abs=0.2)


def test_errors_of_a_covariance_by_hand():
    """Four draws, (+-3, 0) and (0, +-3): covariance 6 I, mean 0; against 2 I and 6 I."""
    along_SK = torch.tensor([[3.0, 0], [-3, 0], [0, 3], [0, -3]])
    assert covariance_errors(along_SK, 6 * torch.eye(2))["covariance"] == pytest.approx(0, abs=1e-6)
    errors = covariance_errors(along_SK, 2 * torch.eye(2))
    assert errors["variance"] == pytest.approx(3)
    assert errors["covariance"] == pytest.approx(2)  # |4 I| / |2 I|
    assert errors["covariance_by_chance"] == pytest.approx(1)  # sqrt((8 + 16) / 3 / 8)
    assert errors["mean"] == pytest.approx(-3 / 9)  # (0 - 12 / 4) / (-3 + 12)


def test_the_linear_approximation_breaks_as_eta_grows(tiny_llama):
    rows = one_question(Predicted(tiny_llama, LAYER, IDS), 1.0, draws=64, directions=4, batch=32, key=("test",))
    nonlinear = [row["nonlinear"] for row in rows]
    assert nonlinear == sorted(nonlinear)
    assert nonlinear[1] == pytest.approx(10 * nonlinear[0], rel=0.3)  # what is left is of second order
    assert nonlinear[0] < 0.01 < theorem_4_3.BROKEN < nonlinear[-1]


# Theorem 5.2


def test_closed_forms_by_hand():
    """nu = eta, |g| = |g_per|: 1/2 - arctan(1/2)/pi as printed, 1/2 - arctan(1/sqrt(2))/pi with the sum's variance."""
    one = torch.tensor(1.0)
    assert published(one, one, 1).item() == pytest.approx(0.352416, abs=1e-6)
    assert exact(one, one, 1).item() == pytest.approx(0.304087, abs=1e-6)
    g, g_per = torch.tensor(4.0), torch.tensor(3.0)
    assert published(g, g_per, 4).item() == pytest.approx(0.5 - math.atan(4 / (2 * 7)) / math.pi)
    assert exact(g, g_per, 4).item() == pytest.approx(0.5 - math.atan(4 / (2 * 5)) / math.pi)


@pytest.mark.parametrize("form", [published, exact])
def test_the_probability_grows_with_noise_and_saturates_at_a_half(form):
    g, g_per = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    by_noise = [form(g, g_per, 10.0**k).item() for k in range(-6, 13)]
    assert by_noise == sorted(by_noise)
    assert max(by_noise) < 0.5
    assert by_noise[-1] > 0.499999
    by_ratio = [form(g, r * g, 1.0).item() for r in (0, 0.5, 1, 2, 4, 8)]
    assert by_ratio == sorted(by_ratio)


@pytest.mark.parametrize(("length", "nu_to_eta"), [(0.2, 1.0), (1.0, 1.0), (1.0, 0.1), (3.0, 5.0)])
def test_simulated_gaussians_agree_with_the_exact_form_and_not_with_the_published_one(length, nu_to_eta):
    g_D, g_per_D = torch.tensor([3.0, -4.0]).double(), 5 * length * torch.tensor([0.0, 1.0]).double()
    measured = linear(g_D, g_per_D, nu_to_eta, gaussian(3, 200_000, 2))
    error = math.sqrt(0.25 / 200_000)
    assert abs(measured - exact(g_D.norm(), g_per_D.norm(), nu_to_eta).item()) < 4 * error
    assert abs(measured - published(g_D.norm(), g_per_D.norm(), nu_to_eta).item()) > 8 * error


def test_small_noise_in_a_model_agrees_with_the_exact_form(tiny_llama):
    at = Predicted(tiny_llama, LAYER, IDS)
    found = injected(at, 4, 1e-5, gaussian(3, 3000, 16).float(), batch=1000)
    assert found["ratio"] == pytest.approx(1, rel=0.05)
    for row in found["rows"]:
        assert row["measured"] == pytest.approx(row["exact"], abs=4 * math.sqrt(0.25 / 3000))
        assert row["measured"] == pytest.approx(row["linear"], abs=0.01)  # of the same noise
    assert found["rows"][theorem_5_2.RATIOS.index(1.0)]["published"] - found["rows"][2]["measured"] > 0.03


def test_rejected_counts_changes_of_the_other_sign():
    rna, rm = torch.tensor([1.0, -1, 0, 2, -3, 5]), torch.tensor([1.0, 1, 2, -1, -2, 0])
    assert rejected(rna, rm) == pytest.approx(3 / 5)  # the last has no ratio


def test_a_counterpart_with_planted_noise():
    h_ND, d_ND = 3 * gaussian(400, 12), 0.2 * gaussian(400, 12, seed=1)
    g_ND, g_per_ND = torch.ones(400, 12), 2 * torch.ones(400, 12)
    loss_N = torch.zeros(400, dtype=torch.float64)
    rm = States(h_ND, h_ND + d_ND, loss_N, loss_N + 1, g_ND, g_per_ND)
    delta_ND = 0.1 * gaussian(400, 12, seed=2)
    after_N = loss_N + torch.tensor([0.5, -0.5, 0.5, 0.5]).double().repeat(100)
    rna = States(h_ND + delta_ND, h_ND + delta_ND + d_ND, loss_N, after_N, 5 * g_ND, 7 * g_ND)
    found = against(rna, rm, nu=0.04, directions=4, seed=0)
    assert found["eta"] == pytest.approx(0.04, rel=0.1)
    assert found["nu_measured"] == pytest.approx(0.01, rel=0.1)
    assert found["rejected"]["mean"] == 0.25
    assert found["rejected"]["low"] < 0.25 < found["rejected"]["high"]
    assert found["rm_loss_rises"]["mean"] == 1
    one = torch.tensor(1.0)
    expected = exact(one, 2 * one, 0.04 / found["eta"]).item()
    assert found["predicted"]["nu"]["exact"]["mean"] == pytest.approx(expected, abs=1e-4)


# The command


@pytest.fixture(scope="module")
def two_runs(conf, tmp_path_factory):
    """An RNA run and its counterpart, of a few steps and questions."""
    quick = ("train.steps=4", "eval=toy", "eval.limit=2", "tracker=none")
    root = f"output_root={tmp_path_factory.mktemp('theory')}"
    return [outcome.folder for outcome in run_together([conf(*quick, root, f"rna.nu={nu}") for nu in (0.09, 0)])]


@pytest.mark.slow  # alone runs the whole of `unlearn theory`
def test_the_command_measures_all_of_it_and_again_the_same(two_runs, monkeypatch, capsys):
    rna, rm = map(str, two_runs)
    arguments = ["theory", rna, "--against", rm, "--limit", "8", "--draws", "2", "--directions", "2", "--batch", "4"]
    main(arguments)
    told = capsys.readouterr().err
    for place in ("Assumption 4.2", "Theorem 4.3", "Theorem 5.2", "Assumption 5.1", "verdict"):
        assert place in told
    text = (two_runs[0] / "theory.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    found = json.loads(text)
    assert found["questions"] == 8
    assert found["assumption_4_2"]["eta"]["mean"] > 0
    assert found["against"]["nu"] == pytest.approx(0.0081)
    main(arguments)
    assert (two_runs[0] / "theory.json").read_text() == text
    main([*arguments, "--no-injected"])
    del found["theorem_4_3"], found["theorem_5_2"]
    assert json.loads((two_runs[0] / "theory.json").read_text()) == found
    assert "Theorem 4.3" not in capsys.readouterr().err.rpartition("Assumption 4.2")[2]


def edited(folder, place, change):
    """A copy of a run with another run.json."""
    shutil.copytree(folder, place)
    record = json.loads((place / "run.json").read_text())
    change(record)
    (place / "run.json").write_text(json.dumps(record))
    return place


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r.update(status="failed"), "no finished run"),
        (lambda r: r["config"]["eval"].update(queries=["default"]), "no perturbed queries"),
        (lambda r: r["config"]["eval"]["tasks"].update(retain=[]), "no perturbed queries"),
        (lambda r: r["config"]["eval"].update(asked_of={"perturbed": ["near"]}), "no perturbed queries"),
        (lambda r: r["inputs"].update(model="0"), "not the one that"),
    ],
)
def test_a_run_that_cannot_be_measured_is_told_in_a_line(two_runs, tmp_path, monkeypatch, change, told):
    with pytest.raises(SystemExit, match=f"^Error: [^\n]*{told}[^\n]*$"):
        main(["theory", str(edited(two_runs[0], tmp_path / "run", change))])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["inputs"].update(model="0"), "it has another base model"),
        (lambda r: r["config"]["rna"].update(nu=0.03), "trained with RNA"),
        (lambda r: r["config"]["method"].update(name="rsv"), "it trained rsv at layer 3, and .* rmu at layer 3"),
    ],
)
def test_a_counterpart_that_is_none_is_told_in_a_line(two_runs, tmp_path, change, told):
    with pytest.raises(UserError, match=told):
        theory(two_runs[0], edited(two_runs[1], tmp_path / "rm", change))


def test_a_model_that_does_not_fit_in_float32_is_told_before_it_is_loaded(two_runs, monkeypatch):
    measured = read_run(two_runs[0], 8)
    measured.config.model.dtype = "bfloat16"
    count = parameter_count(AutoConfig.from_pretrained(ROOT / "unlearn/toy/model"))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=3 * count, available=3 * count))
    with pytest.raises(UserError, match=r"the whole model takes 0\.0 GB in torch\.float32, but cpu has 0\.0 GB"):
        load_suite_of(measured)


def test_other_mistakes_are_told(two_runs):
    for folder, options, told in (
        (two_runs[0], {"effort": Effort(limit=3)}, "3 questions are too few"),
        (two_runs[1], {"counterpart": two_runs[0]}, "trained without RNA"),
    ):
        with pytest.raises(UserError, match=told):
            theory(folder, **options)
