"""A rule, applied to each scope group of a batch on its own."""

from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from forkpoint.config.stages import SelectionConfig
from forkpoint.dotted import call_users
from forkpoint.errors import NumericalError, SelectionError
from forkpoint.selection.candidates import Candidates, Rule
from forkpoint.selection.names import BY_PROBABILITY, rules_in
from forkpoint.selection.rules import rules_of
from forkpoint.types import Selection, TokenBatch


def select(
    batch: TokenBatch,
    entropies_T: Tensor,
    groups_T: Tensor,
    config: SelectionConfig,
    *,
    seed: int,
    step: int,
    logprobs_T: Tensor | None = None,
    energies_T: Tensor | None = None,
    draws: str = "random rule",
) -> Selection:
    """Weights of a batch's tokens.

    Args:
        entropies_T: float32 [T] nats, of the source the method names.
        groups_T: int64 [T] from ``scope_groups``; tokens compete within equal numbers.
        seed: for rules that draw.
        step: the same, and for a fraction that changes.
        logprobs_T: float32 [T], ln p of the same source; default: the sampler's.
        energies_T: float32 [T], A^2 E of the same source, where it is known.
        draws: names the stream of random numbers.

    Raises:
        NumericalError: an entropy of the pool is not finite, or what else the rule reads is not.
        SelectionError: the pool is empty, or a custom rule returned something else than one
            weight >= 0 per candidate.
        UserCodeError: a custom rule raised.
    """
    pool = batch.pool_T.nonzero().flatten()
    if not len(pool):
        raise SelectionError(
            "no token to select from: every completion of the step has zero advantage or was "
            "masked as truncated"
        )
    logprobs_T = batch.rollout_logprobs_T if logprobs_T is None else logprobs_T
    energies = None if energies_T is None else energies_T[pool]
    _check_numbers(entropies_T[pool], logprobs_T[pool], energies, config.rule)
    weights_T = torch.zeros_like(entropies_T)
    # Groups one after the other, their tokens in the batch's order.
    groups_N, order_N = groups_T[pool].sort(stable=True)
    index_N, sizes = groups_N.unique_consecutive(return_inverse=True, return_counts=True)[1:]
    rows_N = pool[order_N]
    whole = Candidates(
        entropies_N=entropies_T[rows_N],
        sequence_ids_N=batch.sequence_ids_B.to(rows_N.device)[batch.sequence_T[rows_N]],
        positions_N=batch.position_T[rows_N],
        advantages_N=batch.advantages_T[rows_N],
        logprobs_N=logprobs_T[rows_N],
        energies_N=None if energies_T is None else energies_T[rows_N],
        keep_fraction=fraction_at(config, step),
        rounding=config.rounding,
        ties=config.ties,
        threshold_nats=config.threshold_nats,
        seed=seed,
        step=step,
        draws=draws,
    )
    for rows, candidates in zip(
        rows_N.split(sizes.tolist()), _split(whole, sizes.tolist()), strict=True
    ):
        weights_T[rows] = weigh(candidates, config)
    chosen_N = weights_T[rows_N] > 0
    lowest = torch.full((len(sizes),), torch.inf, device=pool.device).scatter_reduce(
        0, index_N[chosen_N], entropies_T[rows_N][chosen_N], reduce="amin"
    )
    weights_T = torch.where(batch.mask_T, weights_T, 0.0)  # the masked only compete
    return Selection(
        weights_T=weights_T,
        thresholds=tuple(x if x != torch.inf else torch.nan for x in lowest.tolist()),
        pool_tokens=len(pool),
        kept_tokens=int((weights_T > 0).sum()),
    )


def _check_numbers(
    entropies_N: Tensor, logprobs_N: Tensor, energies_N: Tensor | None, rule: str
) -> None:
    if not entropies_N.isfinite().all():
        raise NumericalError("the entropies to select by are not finite")
    by_probability = not BY_PROBABILITY.isdisjoint(rules_in(rule))
    if by_probability and not logprobs_N.isfinite().all():
        raise NumericalError(
            f"the rule {rule} needs the log-probability of every token, and the sampler does not "
            "know some: write selection.entropy = 'old'"
        )
    if energies_N is not None and not energies_N.isfinite().all():
        raise NumericalError("the energies of tokens are not finite")


def weigh(candidates: Candidates, config: SelectionConfig) -> Tensor:
    """The weight of each candidate by the rule of a configuration, the largest one by a union:
    float32 [N].

    Raises:
        SelectionError: a rule returned something else than one weight >= 0 per candidate.
        UserCodeError: a custom rule raised.
    """
    rules = rules_of(config).items()
    return torch.stack([_checked(rule, candidates, name) for name, rule in rules]).amax(0)


def scope_groups(batch: TokenBatch, scope: str, microbatches: list[list[int]]) -> Tensor:
    """The scope group of each token: int64 [T].

    ``batch`` and ``minibatch`` make one group of all that is passed in; ``sequence`` one per
    sequence; ``microbatch`` one per part of ``microbatches`` (lists of sequence indices).
    """
    if scope == "sequence":
        return batch.sequence_T
    part_B = torch.zeros(batch.num_sequences, dtype=torch.int64)
    if scope == "microbatch":
        for part, sequences in enumerate(microbatches):
            part_B[sequences] = part
    return part_B.to(batch.sequence_T.device)[batch.sequence_T]


def fraction_at(config: SelectionConfig, step: int) -> float:
    """``keep_fraction`` in a step, which are counted from 1.

    With ``keep_fraction_start`` it goes from there in step 1 to ``keep_fraction`` in step
    ``keep_fraction_steps``, in equal parts, and stays.
    """
    start, steps = config.keep_fraction_start, config.keep_fraction_steps
    if start is None or steps is None or step >= steps:
        return config.keep_fraction
    way = (step - 1) / (steps - 1)
    return round(start + way * (config.keep_fraction - start), 12)  # 0.6, not 0.6000000000000001


def _split(whole: Candidates, sizes: list[int]) -> Iterator[Candidates]:
    """So many candidates at a time."""
    names = [f.name for f in fields(whole) if f.name.endswith("_N")]
    names = [name for name in names if getattr(whole, name) is not None]
    streams = (getattr(whole, name).split(sizes) for name in names)
    for part in zip(*streams, strict=True):
        yield replace(whole, **dict(zip(names, part, strict=True)))


def _checked(rule: Rule, candidates: Candidates, name: str) -> Tensor:
    """What the rule says, if it is one finite weight >= 0 per candidate."""
    n = len(candidates.entropies_N)
    given = call_users(rule, candidates, setting=f"selection.rule = {name!r}")
    if torch.is_tensor(given) and given.is_complex():
        raise _refused(name, n, "complex numbers")
    try:
        weights_N = torch.as_tensor(
            given, dtype=torch.float32, device=candidates.entropies_N.device
        ).detach()
    except (TypeError, ValueError, RuntimeError):
        raise _refused(name, n, f"a {type(given).__name__}") from None
    if weights_N.shape != (n,):
        raise _refused(name, n, f"a tensor of shape {tuple(weights_N.shape)}")
    bad = ~weights_N.isfinite() | (weights_N < 0)
    if bad.any():
        raise _refused(name, n, f"the weight {weights_N[bad][0].item()}")
    return weights_N


def _refused(name: str, n: int, returned: str) -> SelectionError:
    return SelectionError(
        f"the rule {name} must return {n} finite weights >= 0, one per candidate; it returned "
        f"{returned}"
    )
