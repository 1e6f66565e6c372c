"""The rules: from the tokens that compete to a weight for each.

A rule is any callable ``rule(candidates) -> weights_N`` where a weight of 0 means no policy
gradient. Here are the paper's rule and the controls, which answer what else could explain its
result; those of other papers are in ``published``. A rule of yours is named by its dotted path in
``selection.rule``; see ``examples/custom_rule.py``.
"""

import difflib
import inspect
from dataclasses import replace
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor

from forkpoint.config.run import RunConfig
from forkpoint.config.stages import MarkedConfig, SelectionConfig
from forkpoint.dotted import resolve
from forkpoint.errors import ConfigError, SelectionError
from forkpoint.selection import published
from forkpoint.selection.candidates import (
    Candidates,
    Rule,
    even_draws,
    exactly_k,
    linear_quantile,
)
from forkpoint.selection.names import WITHOUT_FRACTION, rules_in


def top(candidates: Candidates) -> Tensor:
    """The forks: tokens of highest entropy.

    ``ties`` decides at the edge: ``order`` keeps exactly k by (entropy, sequence id, position);
    ``keep`` keeps H >= the k-th value; ``quantile`` keeps H >= the linearly interpolated
    (1 - keep_fraction) quantile.
    """
    if candidates.ties == "order":
        return exactly_k(candidates, candidates.entropies_N)
    if candidates.ties == "keep":
        ranked_N = torch.sort(candidates.entropies_N, descending=True).values
        edge = ranked_N[candidates.num_kept - 1]
    else:
        edge = linear_quantile(candidates.entropies_N, 1 - candidates.keep_fraction)
    return (candidates.entropies_N >= edge).float()


def bottom(candidates: Candidates) -> Tensor:
    """The control: every token that ``top`` with a fraction of 1 - keep_fraction leaves.

    The two never share a token and together are everything, whatever ``ties`` and ``rounding`` say.
    So with rounding up it is the bottom that gets one token less (none of a single one).
    """
    rest = 1 - Fraction(str(candidates.keep_fraction))
    if rest == 0:
        return everything(candidates)
    return 1 - top(replace(candidates, keep_fraction=float(rest)))


def random(candidates: Candidates) -> Tensor:
    """The other control: k tokens drawn evenly, each by (seed, step, sequence id, position)."""
    return exactly_k(candidates, even_draws(candidates))


def random_unbiased(candidates: Candidates) -> Tensor:
    """The same k tokens, each with the weight n / k, one over its chance to be drawn.

    So every token's expected weight is 1, and with ``loss.denominator = "all"`` the expected
    gradient is that of all tokens (Horvitz and Thompson 1952; of tokens: NAT, 2603.06619, which
    draws each token on its own).
    """
    weights_N = random(candidates)
    return weights_N * (len(weights_N) / max(1, candidates.num_kept))


def prefix(candidates: Candidates) -> Tensor:
    """The control for position: the k tokens that stand first in their completions."""
    return exactly_k(candidates, -candidates.positions_N.double())


def energy(candidates: Candidates) -> Tensor:
    """The k tokens with the largest policy gradient at the logits, A^2 ||onehot(y) - p||^2.

    Entropy says how undecided the policy was; this also, how much the sampled word and its
    advantage would move it.

    Raises:
        SelectionError: energies are not known.
    """
    if candidates.energies_N is None:
        raise SelectionError(
            "the rule energy needs the energies of all tokens, which the engine did not give: "
            "write selection.entropy = 'old'"
        )
    return exactly_k(candidates, candidates.energies_N)


def low_probability(candidates: Candidates) -> Tensor:
    """The k tokens whose sampled word was the least probable."""
    return exactly_k(candidates, -candidates.logprobs_N)


def threshold(candidates: Candidates) -> Tensor:
    """H > threshold_nats (the paper marks Qwen3-8B's forks by H > 0.672)."""
    assert candidates.threshold_nats is not None  # checked with the configuration
    return (candidates.entropies_N > candidates.threshold_nats).float()


def everything(candidates: Candidates) -> Tensor:
    """Every token of the pool: plain RLVR."""
    return torch.ones_like(candidates.entropies_N)


RULES: dict[str, Rule] = {
    "top": top,
    "bottom": bottom,
    "random": random,
    "random_unbiased": random_unbiased,
    "prefix": prefix,
    "energy": energy,
    "low_probability": low_probability,
    "threshold": threshold,
    "all": everything,
    "clip_cov": published.clip_cov,
    "high_covariance": published.high_covariance,
    "relative_surprisal": published.relative_surprisal,
    "stapo": published.stapo,
    "not_mastered": published.not_mastered,
    "entropy_advantage": published.entropy_advantage,
}


def marking(marked: MarkedConfig) -> SelectionConfig:
    """The selection that finds the tokens of ``loss.marked``."""
    return SelectionConfig(
        rule=marked.rule, parameters=marked.parameters, keep_fraction=marked.keep_fraction
    )


def rules_of(config: SelectionConfig, key: str = "selection") -> dict[str, Rule]:
    """The rules that a configuration names, by name, with their parameters: one, or several whose
    largest weight counts.

    Args:
        key: the section of the configuration, for messages.

    Raises:
        ConfigError: there is none of that name, or it takes no such parameters.
    """
    names = rules_in(config.rule)
    rules = {name: RULES.get(name) or _of_users(name, config.rule, key) for name in names}
    if not config.parameters:
        return rules
    if len(rules) > 1:
        raise ConfigError(f"{key}.parameters is read by a single rule, not by a union")
    (name, rule) = next(iter(rules.items()))
    _check_names(name, rule, config, key)
    with_them = partial(rule, **config.parameters)
    if name in RULES:  # what cannot be is known before anything is sampled
        try:
            with_them(SOME)
        except SelectionError as error:
            raise ConfigError(f"{key}.parameters: {error}") from None
    return {name: with_them}


def check_rules(config: RunConfig) -> None:
    """Find what is wrong with the rules of a run before anything of it is made.

    Raises:
        ConfigError: as ``rules_of``; or nothing reads a fraction that is to change.
    """
    rules_of(config.selection)
    chosen = config.selection
    unread = WITHOUT_FRACTION.issuperset(rules_in(chosen.rule))
    if chosen.keep_fraction_start is not None and unread:
        raise ConfigError(f"selection.rule = {chosen.rule!r} keeps no fraction that could change")
    if config.loss.marked is not None:
        rules_of(marking(config.loss.marked), "loss.marked")


def _of_users(name: str, whole: str, key: str) -> Rule:
    if ":" in name:
        return resolve(name, key=f"{key}.rule")
    near = difflib.get_close_matches(name, RULES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(
        f"{key}.rule = {whole!r}: {name!r} is neither a known rule nor package.module:function"
        f"{hint}"
    )


SOME = Candidates(
    entropies_N=torch.tensor([0.5, 1.0]),
    sequence_ids_N=torch.tensor([0, 0]),
    positions_N=torch.tensor([0, 1]),
    advantages_N=torch.tensor([1.0, -1.0]),
    logprobs_N=torch.tensor([-0.5, -1.0]),
    energies_N=torch.tensor([0.5, 1.0]),
    keep_fraction=0.5,
)
"""To try a rule on."""


def _check_names(name: str, rule: Rule, config: SelectionConfig, key: str) -> None:
    try:
        signature = inspect.signature(rule)
    except ValueError:  # a callable that does not say what it takes
        return
    try:
        signature.bind(None, **config.parameters)
    except TypeError:
        takes = list(signature.parameters)[1:]
        has = f"it has {', '.join(takes)}" if takes else "it has none"
        raise ConfigError(
            f"{key}.parameters = {dict(config.parameters)}, but the rule {name} takes others: {has}"
        ) from None
