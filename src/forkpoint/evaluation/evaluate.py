"""Sampling held-out problems and counting the right answers."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from forkpoint.config import RunConfig
from forkpoint.errors import RewardError, RunError
from forkpoint.evaluation.held_out import prompt_parts, sample_settings
from forkpoint.evaluation.metrics import counts, majority_at, pass_at, sampling_error
from forkpoint.evaluation.statistics import bootstrap_interval, wilson_interval
from forkpoint.rewards.build import ANSWER, SILENT, verifier_of
from forkpoint.runs import RunDirectory
from forkpoint.runs.completions import part_file, write_completions
from forkpoint.runs.evaluation import Answered, Evaluation
from forkpoint.runs.results import Estimate, write_result
from forkpoint.runs.resume import Pieces
from forkpoint.sampling import SamplingParts, build_sampling, sample_groups
from forkpoint.sampling.record import stored_rows
from forkpoint.types import FinishReason, Group, Problem, Prompt, Rollout

DECIDES = ("model", "task", "rewards", "rollout", "evaluation")
"""Sections of a configuration that decide what is sampled and how it is judged."""

NOT_OF_VERDICTS = {"weight", "timeout_s", "on_timeout", "batch_size"}
"""Settings of a reward under which an answer is as right as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What is counted of the completions of P problems. Made by ``tally``."""

    right_PG: tuple[tuple[bool, ...], ...]
    """The verdict of each completion of each problem."""
    answers_PG: tuple[tuple[int | None, ...], ...]
    """Which completions of a problem answer the same: see ``same_answers``."""
    completions: int
    tokens: int
    truncated: int
    """Completions that were cut by the token budget."""
    judged: int
    """Completions that a verifier could judge within its time."""
    error: str | None
    """The first verifier's error."""

    @property
    def right_P(self) -> tuple[float, ...]:
        """The share of right completions of each problem."""
        return tuple(sum(right_G) / len(right_G) for right_G in self.right_PG)

    @property
    def samples(self) -> int:
        """The most completions of a problem."""
        return max(map(len, self.right_PG))

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
        right_PG=tuple(tuple(is_right(r) for r in g.rollouts_G) for g in groups),
        answers_PG=tuple(same_answers(g) for g in groups),
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


def same_answers(group: Group) -> tuple[int | None, ...]:
    """Which completions answer the same: 0 the right ones, which all equal the right answer; 1, 2,
    .. wrong ones that the verifier finds equal; None without an answer. Empty if nobody compared
    them (``rewards.build.SameAnswers``)."""
    if any(ANSWER not in r.score.parts for r in group.rollouts_G):
        return ()
    wrong: dict[float, int] = {}
    found: list[int | None] = []
    for rollout in group.rollouts_G:
        number = rollout.score.parts[ANSWER]
        if is_right(rollout):
            found.append(0)
        elif number is None or number == SILENT:
            found.append(None)
        else:
            found.append(wrong.setdefault(number, len(wrong) + 1))
    return tuple(found)


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
    return _over_problems(found.right_P, found.samples, seed)


def _over_problems(shares_P: Sequence[float], samples: int, seed: int) -> Estimate:
    """Their mean with its interval, see ``accuracy``."""
    if samples == 1:
        low, high = wilson_interval(sum(shares_P), len(shares_P))
    else:
        low, high = bootstrap_interval(shares_P, seed=seed)
    return Estimate(value=float(np.mean(shares_P)), low=low, high=high, n=len(shares_P))


def measured(found: Tally, problems: Sequence[Problem], config: RunConfig) -> dict[str, Any]:
    """The fields of ``runs.evaluation.Measured``.

    Raises:
        RewardError: no completion at all could be judged.
        RunError: a problem does not have ``evaluation.samples`` answers.
    """
    n, seed = config.evaluation.samples, config.evaluation.seed
    if drawn := {len(right_G) for right_G in found.right_PG} - {n}:
        raise RunError(f"a problem has {drawn.pop()} answers where {n} were to be drawn")

    def curve(chances: Callable[[int], Sequence[float]]) -> dict[int, Estimate]:
        return {k: _over_problems(chances(k), n, seed) for k in counts(n)}

    rights_P = [sum(right_G) for right_G in found.right_PG]
    return {
        "temperature": config.rollout.temperature,
        "samples": n,
        "max_new_tokens": config.rollout.max_new_tokens,
        "accuracy": accuracy(found, seed=seed),
        "sampling_error": sampling_error(found.right_PG),
        "pass_at": curve(lambda k: [pass_at(right, n, k) for right in rights_P]),
        "length_mean": found.length_mean,
        "truncated_fraction": found.truncated / found.completions,
        "unjudged": found.completions - found.judged,
        "problems": tuple(
            Answered(id=problem.id, digest=digest(problem), right=right_G, answers=answers_G)
            for problem, right_G, answers_G in zip(
                problems, found.right_PG, found.answers_PG, strict=True
            )
        ),
    }


def majorities(found: Tally, seed: int) -> dict[int, Estimate]:
    """k -> maj@k, for ``runs.evaluation.BenchmarkScore``; empty if answers were not compared."""
    n = found.samples
    if not all(found.answers_PG):
        return {}
    votes_P = [Counter(answers_G) for answers_G in found.answers_PG]

    def chance(votes: Counter[int | None], k: int) -> float:
        wrong = sorted(count for answer, count in votes.items() if answer)
        return majority_at(votes[0], wrong, votes[None], k)

    return {k: _over_problems([chance(v, k) for v in votes_P], n, seed) for k in counts(n)}


def digest(*problems: Problem) -> str:
    """Equal for problems with the same prompts and the same columns, right answers among them."""
    contents = [[problem.prompt, dict(problem.columns)] for problem in problems]
    text = json.dumps(contents, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def summed(parts: Sequence[Tally]) -> Tally:
    """The tally of the problems of several parts, in their order."""
    return Tally(
        right_PG=tuple(right_G for part in parts for right_G in part.right_PG),
        answers_PG=tuple(answers_G for part in parts for answers_G in part.answers_PG),
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
    problems = held_out(parts, config)
    prompts = {number: parts.prompter(problem) for number, problem in enumerate(problems)}
    groups = _sample(parts, config, prompts, "evaluate", should_stop)
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
            problems = held_out(parts, config)
            found = sample_pieces(parts, config, problems, pieces, "evaluate", should_stop)
        if (different := len({problem.id for problem in problems})) < len(problems):
            note(
                f"{different} different problems among {len(problems)} that were drawn: the "
                "interval takes all of them for different"
            )
        result = Evaluation(
            model=config.model.path,
            task=config.held_out_name,
            verifier=_verifier(config),
            seed=config.evaluation.seed,
            **measured(found, problems, config),
        )
        write_result(root, result)
    return result


def _verifier(config: RunConfig) -> str:
    """The settings that decide whether an answer is right."""
    deciding = verifier_of(config.rewards)
    settings = deciding.model_dump(mode="json", exclude=NOT_OF_VERDICTS, exclude_defaults=True)
    settings["type"] = deciding.type
    if deciding.type == "task" and config.task.type == "gym":
        settings["answer_format"] = config.task.answer_format
    return json.dumps(settings, sort_keys=True)


def decisive(config: RunConfig) -> dict[str, Any]:
    """The settings of a measurement on held-out problems, for ``Pieces.open``."""
    found = config.model_dump(mode="json", include=set(DECIDES))
    for name in ("benchmarks", "benchmark_dir"):
        del found["evaluation"][name]
    return found


def held_out(parts: SamplingParts, config: RunConfig) -> list[Problem]:
    """The problems that are measured."""
    return parts.task.held_out(config.evaluation.problems, config.evaluation.seed)


def _sample(
    parts: SamplingParts,
    config: RunConfig,
    prompts: Mapping[int, Prompt],
    purpose: str,
    should_stop: Callable[[], bool],
) -> tuple[Group, ...]:
    settings, samples = sample_settings(config, purpose), config.evaluation.samples
    return sample_groups(parts, prompts, settings, samples=samples, should_stop=should_stop).groups


def sample_pieces(
    parts: SamplingParts,
    config: RunConfig,
    problems: Sequence[Problem],
    pieces: Pieces,
    purpose: str,
    should_stop: Callable[[], bool],
) -> Tally:
    """Sample ``evaluation.samples`` answers to each problem, part by part, as many problems as the
    engine samples side by side. Finished parts are not sampled again.

    Args:
        purpose: the first word of the random streams.

    Raises:
        Interrupted: ``should_stop()`` turned true; the parts written so far stay.
    """

    def make(prompts: Mapping[int, Prompt], path: Path) -> Tally:
        groups = _sample(parts, config, prompts, purpose, should_stop)
        tokenizer = parts.loaded.tokenizer
        write_completions(path, (row for group in groups for row in stored_rows(group, tokenizer)))
        return tally(groups)

    return summed(
        [
            pieces.get(
                f"part_{number:05d}.json",
                Tally,
                partial(make, prompts, part_file(pieces.folder, number)),
            )
            for number, prompts in enumerate(prompt_parts(parts, config, dict(enumerate(problems))))
        ]
    )
