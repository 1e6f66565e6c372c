"""What is known of rules by their names, without computing anything."""

BY_ENERGY = frozenset({"energy"})
"""Rules that read ``Candidates.energies_N``."""

BY_PROBABILITY = frozenset(
    {
        *("low_probability", "clip_cov", "high_covariance"),
        *("relative_surprisal", "stapo", "not_mastered"),
    }
)
"""Rules that read ``Candidates.logprobs_N``."""

WITHOUT_FRACTION = frozenset(
    {
        *("all", "threshold", "clip_cov", "relative_surprisal"),
        *("stapo", "not_mastered", "entropy_advantage"),
    }
)
"""Rules that do not read ``selection.keep_fraction``."""


def rules_in(name: str) -> list[str]:
    """The rules of a union, ``top+prefix``, or the one rule that is named."""
    return name.split("+")


def reads_fraction(name: str) -> bool:
    """Whether ``selection.keep_fraction`` says how much a rule keeps: of a union, not alone; of a
    rule of the user's, presumably."""
    return name not in WITHOUT_FRACTION and len(rules_in(name)) == 1
