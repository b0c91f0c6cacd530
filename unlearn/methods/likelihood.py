"""The base class of methods on likelihoods: a forget loss of the samples' log-likelihoods; the retain loss is there.

`likelihood_loss.py` has the losses. B batch.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unlearn.arguments import check_choice, check_flag
from unlearn.errors import UserError
from unlearn.methods.method import Method
from unlearn.methods.rna import RETAIN_TARGET

if TYPE_CHECKING:
    from torch import Tensor

    from unlearn.methods.inputs import Pair
    from unlearn.methods.likelihood_loss import LikelihoodObjective
    from unlearn.methods.objective import Setup

RETAIN = ("kl", "mse", "nll")


@dataclass(frozen=True, kw_only=True)
class LikelihoodMethod(Method):
    """The base class of methods on likelihoods: a frozen dataclass of their arguments. The whole model is needed.

    Args:
        retain: the retain loss. "kl": divergence of the updated from the frozen model's next-token distributions;
            "mse": squared difference of their log-probabilities; "nll": the usual loss on the retain texts.
        published: what the published code did, for mask="none" only: log-likelihoods are the mean over all tokens of
            the batch in place of each sample's own, the frozen model sees padding, and the preferred texts of DPO
            cancel.
        rna: noise on the frozen model's hidden states at layer l; not with retain="nll", which does not use them.

    Raises:
        UserError: an argument is not allowed.
    """

    needs_logits: ClassVar[bool] = True

    retain: str = "kl"
    published: bool = False

    def __post_init__(self) -> None:
        check_choice("retain", self.retain, RETAIN)
        check_flag("published", self.published)
        if self.rna.where != RETAIN_TARGET:
            raise UserError(
                f"rna.where={self.rna.where} is not allowed with a method on likelihoods: placebos of RNA are for "
                f"methods on representations. Use {RETAIN_TARGET}."
            )
        if self.retain == "nll" and self.rna.nu > 0:
            raise UserError(
                f"retain=nll with RNA (nu={self.rna.nu:g}) is not allowed: that retain loss has no reference that "
                "noise could be added to. Use nu=0, or retain=kl or mse."
            )

    @abstractmethod
    def forget(self, likelihoods: Pair) -> Tensor:
        """The forget loss: scalar, differentiable in the updated model's log-likelihoods."""

    def objective(self, setup: Setup) -> LikelihoodObjective:
        """This method's forget loss plus alpha times its retain loss."""
        from unlearn.methods.likelihood_loss import LikelihoodObjective
        from unlearn.methods.noise import Augmentation

        if self.published and setup.mask != "none":
            raise UserError(f"published=True with mask={setup.mask} is not allowed: it goes with mask=none.")
        return LikelihoodObjective(self, setup.alpha, setup.mask, Augmentation(self.rna, setup.seed, setup.ahead))
