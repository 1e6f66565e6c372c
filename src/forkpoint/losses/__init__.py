"""The objective as three tables that do not know each other: surrogate, penalties, denominator."""

from forkpoint.losses.batch_loss import KL_ESTIMATORS, batch_loss
from forkpoint.losses.denominators import DENOMINATORS, with_coefficients
from forkpoint.losses.policy_loss import policy_loss
from forkpoint.losses.surrogates import SURROGATES

__all__ = [
    "DENOMINATORS",
    "KL_ESTIMATORS",
    "SURROGATES",
    "batch_loss",
    "policy_loss",
    "with_coefficients",
]
