"""A step's rollouts as rows of its parquet file."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from forkpoint.advantages import group_advantages
from forkpoint.sampling.collect import StepRollouts
from forkpoint.types import Group, TokenBatch

if TYPE_CHECKING:  # sampling works where pyarrow is not installed
    from forkpoint.runs.rollouts import RolloutRow


class RowMaker:
    """Turns groups into rows; keeps the text of each token id it has met."""

    def __init__(self, tokenizer: Any, advantage: str) -> None:
        self._tokenizer = tokenizer
        self._advantage = advantage
        self._texts: dict[int, str] = {}

    def rows(
        self, step: int, rollouts: StepRollouts, trained: TokenBatch | None
    ) -> "list[RolloutRow]":
        """One row per sampled completion, in the order of the prompt stream.

        Args:
            trained: the batch with its ``weights_T``; None if nothing was trained.
        """
        selected = _selected_by_sequence(trained)
        accepted = {group.serial for group in rollouts.accepted}
        return [
            row
            for group in rollouts.groups
            for row in self._group(step, group, group.serial in accepted, selected)
        ]

    def _group(
        self, step: int, group: Group, accepted: bool, selected: dict[int, list[bool]]
    ) -> "Iterator[RolloutRow]":
        from forkpoint.runs.rollouts import RolloutRow

        size = len(group.rollouts_G)
        advantages = group_advantages([r.score.reward for r in group.rollouts_G], self._advantage)
        prompt = self._tokenizer.decode(group.prompt.token_ids)
        for sample, rollout in enumerate(group.rollouts_G):
            completion, score = rollout.completion, rollout.score
            never = [False] * len(completion.token_ids)
            yield RolloutRow(
                step=step,
                prompt_id=group.prompt.problem.id,
                prompt=prompt,
                serial=group.serial,
                sample=sample,
                completion=completion.text,
                reward=score.reward,
                verdict=score.verdict,
                reward_parts=dict(score.parts),
                error=score.error,
                advantage=advantages[sample] or 0.0,
                accepted=accepted,
                finish_reason=str(completion.finish_reason),
                token_ids=completion.token_ids.tolist(),
                tokens=tuple(self._text(i) for i in completion.token_ids.tolist()),
                logprobs=completion.logprobs.tolist(),
                entropies=None if completion.entropies is None else completion.entropies.tolist(),
                selected=tuple(selected.get(group.serial * size + sample, never)),
            )

    def _text(self, token_id: int) -> str:
        if token_id not in self._texts:
            self._texts[token_id] = self._tokenizer.decode([token_id])
        return self._texts[token_id]


def _selected_by_sequence(batch: TokenBatch | None) -> dict[int, list[bool]]:
    """Sequence id -> which of its tokens were selected."""
    if batch is None or batch.weights_T is None:
        return {}
    kept_T = (batch.weights_T > 0).tolist()
    ids = batch.sequence_ids_B.tolist()
    lengths = [len(c) for c in batch.completions_B]
    out, start = {}, 0
    for sequence_id, length in zip(ids, lengths, strict=True):
        out[sequence_id] = kept_T[start : start + length]
        start += length
    return out
