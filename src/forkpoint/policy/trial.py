"""Which layout of rows a model takes: tried on the rows that training will run, not assumed."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from forkpoint.batching.batch import lay_out
from forkpoint.errors import ModelError
from forkpoint.policy.attention import hidden_windows, row_width, takes_masks
from forkpoint.policy.body import causal_lm, longest_readable, name_of, runs_again
from forkpoint.policy.checks import FAULTS, first_line, gap_nats, same_nats, some_ids
from forkpoint.policy.dense import dense_stats
from forkpoint.policy.live import LiveSet
from forkpoint.policy.local import local_stats
from forkpoint.policy.sparse import padded_stats, tree_stats
from forkpoint.types import TokenBatch, TokenStats

logger = logging.getLogger(__name__)

SHORT = 64
"""Tokens of a row where every logit is computed, too."""

ROOMY = 0.5
"""More than the share of a trial's positions that predict wanted tokens."""

LONGEST = 16_384
"""No trial runs rows longer than this; a model with a wider window gets padded rows."""


def settle_rows(model: Any, gradient: str, rows: str, live: LiveSet) -> str:
    """The layout of rows in which a model's numbers come out as those of plain full passes.

    Tree rows are tried at the width that training will use, and at more than twice every window the
    config names, with several trees in the row.

    Args:
        gradient: ``dense``, ``sparse`` or ``local``.
        rows: ``tree``, ``padded``, or ``auto``: trees if the model takes them.
        live: which positions ``local`` runs with gradient.

    Returns:
        ``tree`` or ``padded``; a line is logged where ``auto`` finds trees wrong.

    Raises:
        ModelError: naming the class, when the layout asked for, or every layout, is wrong.
    """
    if (gradient, rows) in (("dense", "tree"), ("local", "padded")):
        raise ModelError(f"training.rows = {rows!r} is no layout of {gradient} gradients; use auto")
    if gradient == "dense":
        return "padded"
    if gradient == "local" and runs_again(model):
        raise ModelError(
            "local gradients read a cache of keys and values, and the layers of this "
            f"{name_of(model)} are checkpointed, which leaves them none: use one of the two"
        )
    with reference_attention(model):  # nothing here depends on it
        fault = _fault(model, SHORT, padded_stats, dense_stats)
    if fault is not None:
        raise ModelError(
            f"{name_of(model)} does something after its transformer that this package does not "
            f"know: sparse and local gradients would be wrong ({fault}); use "
            "--set training.gradient=dense"
        )
    if rows == "padded":
        return rows
    fault = tree_fault(model)
    if fault is None:
        # with room for what is looked at, whatever the share: some rows of a run have it
        roomy = replace(live, fraction=max(live.fraction, ROOMY))
        if gradient == "local" and (fault := tree_fault(model, roomy)):
            raise ModelError(
                f"training.gradient = 'local' goes wrong with {name_of(model)} ({fault}); try "
                "--set training.first_hop=false, or use --set training.gradient=sparse"
            )
        return "tree"
    if gradient == "local" or rows == "tree":
        what = "training.gradient = 'local' needs" if gradient == "local" else "you asked for"
        raise ModelError(
            f"{what} tree rows, which {name_of(model)} with its attention does not take ({fault}); "
            "use --set training.gradient=sparse --set training.rows=auto"
        )
    logger.warning("%s gets padded rows, not trees: %s", name_of(model), fault)
    return "padded"


def tree_fault(model: Any, live: LiveSet | None = None) -> str | None:
    """What is wrong with tree rows for this model, or with local ones over ``live``; or None."""
    if fault := takes_masks(model):
        return fault
    width = max(SHORT, row_width(model), 2 * max(hidden_windows(model), default=0))
    if width > LONGEST:
        return f"a window in its config is wider than {LONGEST // 2} tokens"
    stats = partial(local_stats, live=live) if live else tree_stats

    def in_trees(*args: Any) -> TokenStats:
        return stats(*args, width=width)

    def plain(*args: Any) -> TokenStats:
        with reference_attention(model):
            return _by_length(*args)

    return _fault(model, width, in_trees, plain)


@contextmanager
def reference_attention(model: Any) -> Iterator[None]:
    """sdpa in the place of FlexAttention, which is compiled anew for every shape."""
    inner = causal_lm(model)
    attention = inner.config._attn_implementation
    if attention == "flex_attention":
        inner.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if attention == "flex_attention":
            inner.set_attn_implementation(attention)


@torch.no_grad()
def _fault(
    model: Any,
    width: int,
    stats: Callable[..., TokenStats],
    expected: Callable[..., TokenStats],
) -> str | None:
    """How two ways to get the statistics of trees of ``width`` tokens differ, or None."""
    batch, wanted_T = trial_batch(model, width)
    try:
        pair = [
            wanted_only(way(model, batch, wanted_T, 1.0), wanted_T) for way in (stats, expected)
        ]
    except FAULTS as error:
        return first_line(error)
    gap = gap_nats(*pair)
    return None if gap <= same_nats(model) else f"log-probabilities are {gap:.2g} nats off"


def wanted_only(stats: TokenStats, wanted_T: Tensor) -> tuple[Tensor, Tensor]:
    """(ln p, H) of the wanted tokens, of statistics that may hold more."""
    kept_R = wanted_T[stats.rows_R]
    return stats.logprobs_R[kept_R], stats.entropies_R[kept_R]


def _by_length(model: Any, batch: TokenBatch, wanted_T: Tensor, temperature: float) -> TokenStats:
    """Padded rows, the long sequences of the trial and the short ones apart: less padding."""
    long = [b for b, c in enumerate(batch.completions_B) if len(c) == len(batch.completions_B[0])]
    parts = [long, list(range(len(long), batch.num_sequences))]
    rows = [batch.rows_of(part) for part in parts]
    found = [
        padded_stats(model, batch.take(part), wanted_T[own], temperature)
        for part, own in zip(parts, rows, strict=True)
    ]
    return TokenStats(
        rows_R=wanted_T.nonzero().flatten(),
        logprobs_R=torch.cat([one.logprobs_R for one in found]),
        entropies_R=torch.cat([one.entropies_R for one in found]),
        energies_R=torch.cat([one.energies_R for one in found]),
        body_tokens=0,
    )


def trial_batch(model: Any, width: int) -> tuple[TokenBatch, Tensor]:
    """A row of ``width`` tokens: a tree over three quarters of it, and two that share the rest.

    Returns:
        The batch, and which of its tokens are wanted (bool [T]).
    """
    unit = max(4, min(3 * width // 16, (longest_readable(model) or width) // 2))
    small = max(2, width // 16)
    shapes = [(unit, unit, max(1, 3 * width // (4 * unit) - 1))] + [(small, small // 2, 2)] * 2
    prompts, completions = [], []
    ids = iter(some_ids(causal_lm(model), 2 * width + 64).split(1))

    def take(count: int) -> Tensor:
        return torch.cat([next(ids) for _ in range(count)])

    for prompt_length, length, count in shapes:
        prompt = take(prompt_length)
        prompts += [prompt] * count
        completions += [take(length) for _ in range(count)]
    batch = lay_out(prompts, completions, range(len(completions)))
    last_T = batch.position_T + 1 == torch.from_numpy(batch.lengths_B)[batch.sequence_T]
    return batch, (batch.position_T % 5 == 0) | last_T
