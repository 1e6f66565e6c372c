"""Sampling held-out problems and counting the right answers."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from forkpoint.config import RunConfig
from forkpoint.errors import RewardError
from forkpoint.evaluation.held_out import prompt_parts, sample_settings
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.runs import RunDirectory
from forkpoint.runs.completions import part_file, write_completions
from forkpoint.runs.results import Estimate, Evaluation, write_result
from forkpoint.runs.resume import Pieces
from forkpoint.sampling import SamplingParts, build_sampling, sample_groups
from forkpoint.sampling.record import stored_rows
from forkpoint.types import FinishReason, Group, Prompt, Rollout

DECIDES = ("model", "task", "rewards", "rollout", "evaluation")
"""Sections of a configuration that decide what is sampled and how it is judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What is counted of the completions of P problems. Made by ``tally``."""

    right_P: tuple[float, ...]
    """The share of right completions of each problem."""
    samples: int
    """The most completions of a problem."""
    completions: int
    tokens: int
    truncated: int
    """Completions that were cut by the token budget."""
    judged: int
    """Completions that a verifier could judge within its time."""
    error: str | None
    """The first verifier's error."""

    @property
    def length_mean(self) -> float:
        """Tokens per completion."""
        return self.tokens / self.completions

    @property
    def truncated_fraction(self) -> float:
        """Of the completions, those cut by the token budget."""
        return self.truncated / self.completions


def tally(groups: Sequence[Group]) -> Tally:
    """Count what was sampled; completions that a verifier failed on are wrong."""
    rollouts = [r for g in groups for r in g.rollouts_G]
    return Tally(
        right_P=tuple(float(np.mean([is_right(r) for r in g.rollouts_G])) for g in groups),
        samples=max(len(g.rollouts_G) for g in groups),
        completions=len(rollouts),
        tokens=sum(len(r.completion) for r in rollouts),
        truncated=sum(r.completion.finish_reason is FinishReason.LENGTH for r in rollouts),
        judged=sum(not r.score.timed_out and r.score.verdict is not None for r in rollouts),
        error=next((r.score.error for r in rollouts if r.score.error), None),
    )


def is_right(rollout: Rollout) -> bool:
    """Whether the verifier gave full marks: 1 or more."""
    verdict = rollout.score.verdict
    return verdict is not None and verdict >= 1.0


def accuracy(found: Tally, *, seed: int) -> Estimate:
    """Mean over problems of the share of right samples, with a 95 % interval.

    One sample per problem: Wilson's interval. Several: a bootstrap over problems, since samples
    of one problem are not independent.

    Raises:
        RewardError: no completion at all could be judged.
    """
    if not found.judged:
        first = found.error or "none: the answers are unreadable"
        raise RewardError(f"no completion could be scored; the first verifier error: {first}")
    right_P = found.right_P
    if found.samples == 1:
        low, high = wilson_interval(int(sum(right_P)), len(right_P))
    else:
        low, high = bootstrap_interval(right_P, seed=seed)
    return Estimate(value=float(np.mean(right_P)), low=low, high=high, n=len(right_P))


def summed(parts: Sequence[Tally]) -> Tally:
    """The tally of the problems of several parts, in their order."""
    return Tally(
        right_P=tuple(right for part in parts for right in part.right_P),
        samples=max(part.samples for part in parts),
        error=next((part.error for part in parts if part.error), None),
        **{
            name: sum(getattr(part, name) for part in parts)
            for name in ("completions", "tokens", "truncated", "judged")
        },
    )


# ---- sampling ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """Made by ``evaluate`` for ``training.loop``."""

    groups: tuple[Group, ...]
    accuracy: Estimate
    length_mean: float
    """Tokens per completion."""
    truncated_fraction: float
    """Of the completions, those cut by the token budget."""


def evaluate(
    parts: SamplingParts, config: RunConfig, should_stop: Callable[[], bool] = lambda: False
) -> Evaluated:
    """Sample ``evaluation.samples`` answers to each of ``evaluation.problems`` held-out problems.

    The draws derive from ``evaluation.seed`` alone: evaluating twice, or two checkpoints of a run,
    uses the same problems and the same random numbers.

    Raises:
        RewardError: no completion at all could be judged.
        Interrupted: ``should_stop()`` turned true.
    """
    problems = parts.task.held_out(config.evaluation.problems, config.evaluation.seed)
    prompts = {number: parts.prompter(problem) for number, problem in enumerate(problems)}
    groups = _sample(parts, config, prompts, should_stop)
    found = tally(groups)
    return Evaluated(
        groups=groups,
        accuracy=accuracy(found, seed=config.evaluation.seed),
        length_mean=found.length_mean,
        truncated_fraction=found.truncated_fraction,
    )


def evaluate_config(
    config: RunConfig,
    root: Path | None,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Evaluate ``config.model``, which is not being trained.

    Args:
        root: a folder for every completion and results/evaluation.json; None keeps nothing. Started
            again with the same settings, the evaluation goes on where it stopped.
        note: gets a line about each thing that whoever reads the accuracy should know.

    Raises:
        ForkpointError: see errors.py; ``Interrupted`` when ``should_stop()`` turned true.
    """
    if root is None:
        with TemporaryDirectory() as folder:
            return evaluate_config(config, Path(folder), should_stop, note)
    with RunDirectory.claim(root) as directory:
        pieces = Pieces.open(directory.completions_dir("evaluation"), decisive(config))
        with closing(build_sampling(config)) as parts:
            directory.describe(config.model_dump_json(indent=2))
            for text in parts.task.notes:
                note(text)
            tallies = _tallies(parts, config, pieces, should_stop)
        found, seed = summed(tallies), config.evaluation.seed
        result = Evaluation(
            model=config.model.path,
            task=config.task_name,
            temperature=config.rollout.temperature,
            seed=seed,
            samples=config.evaluation.samples,
            accuracy=accuracy(found, seed=seed),
            length_mean=found.length_mean,
        )
        write_result(root, result)
    return result


def decisive(config: RunConfig) -> dict[str, Any]:
    """The settings of a measurement on held-out problems, for ``Pieces.open``."""
    return config.model_dump(mode="json", include=set(DECIDES))


def _sample(
    parts: SamplingParts,
    config: RunConfig,
    prompts: Mapping[int, Prompt],
    should_stop: Callable[[], bool],
) -> tuple[Group, ...]:
    settings, samples = sample_settings(config, "evaluate"), config.evaluation.samples
    return sample_groups(parts, prompts, settings, samples=samples, should_stop=should_stop).groups


def _tallies(
    parts: SamplingParts, config: RunConfig, pieces: Pieces, should_stop: Callable[[], bool]
) -> list[Tally]:
    """Part by part, as many problems as the engine samples side by side."""

    def make(prompts: Mapping[int, Prompt], path: Path) -> Tally:
        groups = _sample(parts, config, prompts, should_stop)
        tokenizer = parts.loaded.tokenizer
        write_completions(path, (row for group in groups for row in stored_rows(group, tokenizer)))
        return tally(groups)

    problems = parts.task.held_out(config.evaluation.problems, config.evaluation.seed)
    return [
        pieces.get(
            f"part_{number:05d}.json",
            Tally,
            partial(make, prompts, part_file(pieces.folder, number)),
        )
        for number, prompts in enumerate(prompt_parts(parts, config, dict(enumerate(problems))))
    ]
