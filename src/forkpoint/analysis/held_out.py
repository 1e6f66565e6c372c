"""Sampling answers to held-out problems, in parts that survive a stop.

The draws are those of ``forkpoint analyze``: with the same model and settings, the same answers.
"""

from collections.abc import Callable
from pathlib import Path

from forkpoint.config import RunConfig
from forkpoint.runs.completions import StoredCompletion, part_file, write_completions
from forkpoint.sampling import SamplingParts
from forkpoint.sampling.base import SamplingSettings
from forkpoint.sampling.groups import sample_groups
from forkpoint.sampling.record import stored_rows
from forkpoint.types import Problem, Prompt


def numbered_problems(parts: SamplingParts, config: RunConfig) -> dict[int, Problem]:
    """``evaluation.problems`` held-out problems by their number, without those that came before:
    prompts are what intervals resample, so each must be one."""
    problems = parts.task.held_out(config.evaluation.problems, config.evaluation.seed)
    first: dict[str, int] = {}
    for number, problem in enumerate(problems):
        first.setdefault(problem.id, number)
    return {number: problems[number] for number in first.values()}


def prompt_parts(parts: SamplingParts, config: RunConfig) -> list[dict[int, Prompt]]:
    """The problems as prompts by their number, as many together as are sampled side by side."""
    prompts = {n: parts.prompter(p) for n, p in numbered_problems(parts, config).items()}
    numbers = list(prompts)
    size = max(1, config.rollout.batch_sequences // config.evaluation.samples)
    return [
        {n: prompts[n] for n in numbers[start : start + size]}
        for start in range(0, len(numbers), size)
    ]


def sample_settings(config: RunConfig, purpose: str) -> SamplingSettings:
    """How a configuration draws whole answers for one purpose."""
    return SamplingSettings(
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        seed=config.evaluation.seed,
        step=0,
        purpose=purpose,
    )


def sample_held_out(
    parts: SamplingParts, config: RunConfig, folder: Path, should_stop: Callable[[], bool]
) -> list[Path]:
    """Sample ``evaluation.samples`` answers to each problem into files of completions.

    Those that are there already are not sampled again. A draw derives from the seed, the problem's
    number and the sample's.

    Returns:
        The files, in order.

    Raises:
        Interrupted: ``should_stop()`` turned true; the files written so far stay.
    """
    paths = []
    for number, prompts in enumerate(prompt_parts(parts, config)):
        paths.append(part_file(folder, number))
        if not paths[-1].exists():
            write_completions(paths[-1], sample_answers(parts, config, prompts, should_stop))
    return paths


def sample_answers(
    parts: SamplingParts,
    config: RunConfig,
    prompts: dict[int, Prompt],
    should_stop: Callable[[], bool],
) -> list[StoredCompletion]:
    """``evaluation.samples`` scored answers to each prompt, which stand by their number."""
    settings, samples = sample_settings(config, "analyze"), config.evaluation.samples
    found = sample_groups(parts, prompts, settings, samples=samples, should_stop=should_stop)
    return [row for group in found.groups for row in stored_rows(group, parts.loaded.tokenizer)]
