"""A selection rule of your own: forks of the answers that matter most.

    cd examples
    forkpoint train --set selection.rule=custom_rule:decisive --set selection.keep_fraction=0.1

A token's share of the policy gradient grows with its advantage, which is large where success, or
failure, was rare in its group. The rule keeps the tokens of highest H_t |A_t|: a fork of a group
that was half right must be more open than one of a rare win to be trained on.
"""

from torch import Tensor, zeros

from forkpoint.selection import Candidates


def decisive(candidates: Candidates) -> Tensor:
    """1 for the k tokens of highest H |A|, else 0; k follows from ``keep_fraction``."""
    scores_N = candidates.entropies_N * candidates.advantages_N.abs()
    # Sorted by the last key first, each sort keeping the order of the one before: equal scores go
    # by sequence, then position. Without it the answer would depend on how a batch was cut.
    order_N = candidates.positions_N.argsort(stable=True)
    for key_N in (candidates.sequence_ids_N, -scores_N):
        order_N = order_N[key_N[order_N].argsort(stable=True)]
    weights_N = zeros(len(scores_N))
    weights_N[order_N[: candidates.num_kept]] = 1.0
    return weights_N
