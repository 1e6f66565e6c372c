"""The objective as three tables that do not know each other: surrogate, penalties, denominator."""

from forkpoint.losses.batch_loss import KL_ESTIMATORS, batch_loss
from forkpoint.losses.denominators import DENOMINATORS, with_coefficients
from forkpoint.losses.surrogates import SURROGATES
from forkpoint.losses.tokens import policy_loss

__all__ = [
    "DENOMINATORS",
    "KL_ESTIMATORS",
    "SURROGATES",
    "batch_loss",
    "policy_loss",
    "with_coefficients",
]
