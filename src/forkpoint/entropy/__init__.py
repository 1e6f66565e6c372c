"""Token entropy: the definition, and the same numbers from logits or from hidden states."""

from forkpoint.entropy.head import head_stats, token_stats
from forkpoint.entropy.logits import energy_of_probs, entropy_of_logprobs, log_probs, logits_stats
from forkpoint.entropy.reference import reference_energy, reference_entropy, reference_logprob

__all__ = [
    "energy_of_probs",
    "entropy_of_logprobs",
    "head_stats",
    "log_probs",
    "logits_stats",
    "reference_energy",
    "reference_entropy",
    "reference_logprob",
    "token_stats",
]
