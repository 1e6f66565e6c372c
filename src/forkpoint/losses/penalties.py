"""KL estimators, per token, between the policy and a frozen reference.

With d = ln pi_ref - ln pi, for tokens sampled from pi (http://joschu.net/blog/kl-approx.html):

    k2 = d^2 / 2            biased value, unbiased gradient of KL(pi, pi_ref)
    k3 = exp(d) - d - 1     unbiased value, >= 0; the field's default
"""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

KlEstimator: TypeAlias = Callable[[Tensor], Tensor]


def k2(difference_R: Tensor) -> Tensor:
    return difference_R.square() / 2


def k3(difference_R: Tensor) -> Tensor:
    return difference_R.exp() - difference_R - 1


KL_ESTIMATORS: dict[str, KlEstimator] = {"k2": k2, "k3": k3}
