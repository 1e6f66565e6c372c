"""What a run of TRL's trainer leaves behind for ``forkpoint report``."""

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from forkpoint.errors import ConfigError
from forkpoint.runs.atomic import read_object
from forkpoint.runs.completions import StoredCompletion
from forkpoint.runs.directory import RunDirectory
from forkpoint.runs.metrics_log import MetricsLog
from forkpoint.sampling.pieces import TokenPieces
from forkpoint.types import Completion, FinishReason, Score

OUR_NAMES = {
    "reward": "reward/mean",
    "grad_norm": "grad/norm",
    "learning_rate": "optim/lr",
    "loss": "loss/policy",
    "kl": "loss/kl",
    "completions/mean_length": "completion/length_mean",
    "completions/clipped_ratio": "completion/truncated_fraction",
    "clip_ratio/region_mean": "loss/clip_fraction_kept",
}
"""TRL's names of metrics -> those of metrics.jsonl; TRL's loss metrics are over the tokens that are
left of its mask, here the selected ones."""


def stored_completions(
    trainer: Any, output: Any, logps: Tensor, entropies: Tensor, weights: Tensor, *, step: int
) -> Iterator[StoredCompletion]:
    """The completions of one generation batch that belong to this process, as rows of a file.

    Args:
        trainer: TRL's.
        output: of its ``_generate_and_score_completions``, B completions of up to L tokens.
        logps, entropies: [B, L] nats, of the policy before its first update.
        weights: [B, L], the selection.
    """
    size, tokenizer, count = trainer.num_generations, trainer._tokenizer, len(weights)
    first = trainer.accelerator.process_index * count
    scores, pieces = _scores(trainer, count), TokenPieces(tokenizer)
    for b in range(count):
        ids = output["completion_ids"][b][: trainer._lengths[b]].tolist()
        # the pass saw nothing of a completion that is masked as truncated
        seen = bool(output["completion_mask"][b].any())
        prompt = output["prompt_ids"][b][output["prompt_mask"][b] != 0].tolist()
        serial, sample = divmod(first + b, size)
        ended = bool(ids) and ids[-1] in trainer.eos_token_ids
        yield StoredCompletion(
            completion=Completion(
                token_ids=ids,
                logprobs=logps[b, : len(ids)].float().cpu().numpy()
                if seen
                else [math.nan] * len(ids),  # pyright: ignore[reportArgumentType]
                entropies=entropies[b, : len(ids)].float().cpu().numpy() if seen else None,
                finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
                text=tokenizer.decode(ids, skip_special_tokens=True),
            ),
            prompt_id=f"{step}/{serial}",
            prompt=tokenizer.decode(prompt),
            prompt_token_ids=tuple(prompt),
            serial=serial,
            sample=sample,
            score=scores[b],
            pieces=pieces(ids),
            step=step,
            advantage=float(output["advantages"][b]),
            accepted=bool(output["advantages"][b]),
            selected=(weights[b, : len(ids)] > 0).cpu().numpy(),
        )


def _scores(trainer: Any, count: int) -> list[Score]:
    """Of this process's completions; the first reward function's is the verdict."""
    first = trainer.accelerator.process_index * count
    names: list[str] = []
    for name in trainer.reward_func_names:
        names.append(name if name not in names else f"{name}_{len(names) + 1}")
    scores = []
    for row in trainer._rewards[first : first + count].tolist():
        parts = {n: None if x != x else x for n, x in zip(names, row, strict=True)}
        weighted = [
            float(weight) * value
            for weight, value in zip(trainer.reward_weights, parts.values(), strict=True)
            if value is not None
        ]
        verdict = next(iter(parts.values()), None)
        reward = sum(weighted) if weighted else None
        scores.append(Score(reward=reward, verdict=verdict, parts=parts))
    return scores


def check_not_ours(directory: RunDirectory) -> None:
    """
    Raises:
        ConfigError: ``forkpoint train`` has made this folder, whose steps would be lost.
    """
    if {"rollout", "selection"} <= read_object(directory.config_json).keys():  # not a model's
        raise ConfigError(
            f"output_dir = {str(directory.root)!r} is a run of forkpoint train: choose another"
        )


def forget_later_steps(directory: RunDirectory, step: int) -> None:
    """Remove what an earlier run left in a folder of steps that are still to come."""
    MetricsLog(directory.metrics_jsonl).truncate_after(step)
    for path in directory.completions_dir("train").glob("step_*.parquet"):
        if int(path.stem.split("_")[1]) > step:
            path.unlink()
