"""A method on logits instead of representations joins without a change to the training loop: NPO, with RNA's idea."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.training.test_loop import SETTINGS, TOPICS
from unlearn.data.batches import Batch, Padded, batches
from unlearn.methods.objective import Losses, View
from unlearn.methods.rna import augment
from unlearn.models.cutting import CutModel
from unlearn.training.loop import train
from unlearn.training.variant import make_variant


@dataclass(frozen=True)
class NPO:
    """Negative preference optimisation (Zhang et al., 2024): 2 / beta log(1 + (p_updated / p_reference)^beta).

    The reference's log-likelihood is that of the frozen model with noise on its last hidden state; the retain loss is
    the usual negative log-likelihood.
    """

    model: PreTrainedModel  # its head turns the last layer's output into logits
    beta: float
    alpha: float
    nu: float

    def loglikelihood_B(self, h_BTD: Tensor, part: Padded) -> Tensor:
        logits_BTV = self.model.lm_head(self.model.model.norm(h_BTD)).log_softmax(-1)
        next_BT = part.ids_BT[:, 1:, None]
        return (logits_BTV[:, :-1].gather(-1, next_BT).squeeze(-1) * part.mask_BT[:, 1:]).sum(1)

    def __call__(self, batch: Batch, frozen: View, updated: View) -> Losses:
        with torch.no_grad():
            noisy_BTD = augment(
                frozen.hidden("forget"), batch.forget.mask_BT, batch.topic, batch.step, nu=self.nu, scale="std", seed=0
            )
            reference_B = self.loglikelihood_B(noisy_BTD, batch.forget)
        ratio_B = self.loglikelihood_B(updated.hidden("forget"), batch.forget) - reference_B
        forget = -2 / self.beta * torch.nn.functional.logsigmoid(-self.beta * ratio_B).mean()
        retain = -self.loglikelihood_B(updated.hidden("retain"), batch.retain).mean()
        return Losses(forget, retain, self.alpha, lambda: {"ratio": ratio_B.detach().mean()})

    def prepare(self, batch: Batch) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        pass


def test_npo_with_a_noised_reference_trains_in_the_same_loop(tiny_llama):
    before = {name: p.clone() for name, p in tiny_llama.named_parameters()}
    cut = CutModel(tiny_llama, layer=5)  # the last one: what follows is norm and head
    variant = make_variant(NPO(tiny_llama, beta=0.1, alpha=1.0, nu=0.05), cut.frozen, **SETTINGS)
    records = []
    stream = batches(TOPICS, steps=12, batch_size=2, pad_id=0, side="right")
    train(cut, [variant], stream, mask_padding=False, log_every=1, on_record=lambda _, r: records.append(r))
    bio = [r for r in records if r.topic == "bio"]
    assert bio[-1].forget_loss < bio[0].forget_loss
    assert bio[-1].facts["ratio"] < bio[0].facts["ratio"] - 1  # forget texts have become less likely
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())
    assert all(not torch.equal(w, before[name]) for name, w in variant.weights.items())
