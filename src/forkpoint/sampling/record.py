"""A step's rollouts as rows of its file of completions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from forkpoint.advantages import group_advantages
from forkpoint.randomness import stream
from forkpoint.sampling.collect import StepRollouts
from forkpoint.sampling.pieces import TokenPieces
from forkpoint.types import Group, TokenBatch, sequence_id

if TYPE_CHECKING:  # sampling works where pyarrow is not installed
    from forkpoint.runs.completions import StoredCompletion

AUTO_TOKENS = 2**20
"""Of a step's completions, what ``rollout.keep = "auto"`` stores at most, about 10 MB."""


class RowMaker:
    """Turns a step's groups into rows."""

    def __init__(self, tokenizer: Any, advantage: str) -> None:
        self._tokenizer = tokenizer
        self._advantage = advantage
        self._pieces = TokenPieces(tokenizer)

    def rows(
        self,
        step: int,
        rollouts: StepRollouts,
        trained: TokenBatch | None,
        keep: str | float = "all",
    ) -> "Iterator[StoredCompletion]":
        """The completions to store, in the order of the prompt stream.

        Args:
            trained: the batch with its ``weights_T``; None if nothing was trained.
            keep: which groups; ``config.rollout.keep``.
        """
        selected = _selected_by_sequence(trained)
        accepted = {group.serial for group in rollouts.accepted}
        for group in kept_groups(rollouts.groups, keep):
            yield from self._group(step, group, group.serial in accepted, selected)

    def _group(
        self, step: int, group: Group, accepted: bool, selected: dict[int, np.ndarray]
    ) -> "Iterator[StoredCompletion]":
        size = len(group.rollouts_G)
        advantages = group_advantages([r.score.reward for r in group.rollouts_G], self._advantage)
        for row, advantage in zip(stored_rows(group, self._tokenizer), advantages, strict=True):
            token_ids = row.completion.token_ids
            never = np.zeros(len(token_ids), bool)
            yield replace(
                row,
                step=step,
                pieces=self._pieces(token_ids.tolist()),
                advantage=advantage or 0.0,
                accepted=accepted,
                selected=selected.get(sequence_id(group.serial, row.sample, size), never),
            )


def stored_rows(group: Group, tokenizer: Any) -> "list[StoredCompletion]":
    """What a group says of itself, before anything is known of its tokens but the sampler's."""
    from forkpoint.runs.completions import StoredCompletion

    prompt = tokenizer.decode(list(group.prompt.token_ids))
    return [
        StoredCompletion(
            completion=rollout.completion,
            score=rollout.score,
            prompt_id=group.prompt.problem.id,
            prompt=prompt,
            prompt_token_ids=group.prompt.token_ids,
            serial=group.serial,
            sample=sample,
        )
        for sample, rollout in enumerate(group.rollouts_G)
    ]


def kept_groups(groups: Sequence[Group], keep: str | float) -> list[Group]:
    """The groups to store, in their order: which ones depends on their serials alone.

    Args:
        keep: ``all``, ``none``, a share of the groups, a number of them, or ``auto``: as many as
            hold ``AUTO_TOKENS`` tokens, one at least.
    """
    drawn = sorted(groups, key=lambda g: stream(0, "kept groups", g.serial).random())
    if keep == "auto":
        tokens = np.cumsum([sum(len(r.completion) for r in g.rollouts_G) for g in drawn])
        count = max(1, int((tokens <= AUTO_TOKENS).sum()))
    elif isinstance(keep, str):
        count = len(groups) if keep == "all" else 0
    else:
        count = keep if isinstance(keep, int) else math.ceil(keep * len(groups))
    kept = {group.serial for group in drawn[:count]}
    return [group for group in groups if group.serial in kept]


def _selected_by_sequence(batch: TokenBatch | None) -> dict[int, np.ndarray]:
    """Sequence id -> which of its tokens were selected."""
    if batch is None or batch.weights_T is None:
        return {}
    ends = np.cumsum([len(c) for c in batch.completions_B])[:-1]
    kept_BT = np.split((batch.weights_T > 0).cpu().numpy(), ends)
    return dict(zip(batch.sequence_ids_B.tolist(), kept_BT, strict=True))
