"""Are high-entropy positions decisions? Replace a token there and see how far the reward moves.

Answers to held-out problems are sampled and teacher-forced. In each answer one position is drawn
from the top tokens by entropy and one from the rest; at each the token is kept, and replaced by its
most likely alternatives; from all of them the answer is finished n times. See ``gap`` for what is
computed, and ``continuations`` for how.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from forkpoint.analysis.branch_points import Answer, Pair, draw_pairs
from forkpoint.analysis.continuations import Continuer, Place
from forkpoint.analysis.gap import Alternative, Branch, Position, squared_gap, summarise_gaps
from forkpoint.analysis.held_out import numbered_problems, sample_held_out, sample_settings
from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError, Interrupted
from forkpoint.policy.teacher import score_completions
from forkpoint.runs import RunDirectory
from forkpoint.runs.completions import read_completions
from forkpoint.runs.results import Branching, Replacement, write_result
from forkpoint.runs.resume import Pieces
from forkpoint.sampling import SamplingParts, build_sampling
from forkpoint.types import Prompt

NOTE_EVERY = 10
"""Pairs."""

Kind: TypeAlias = Literal["high", "low"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchSettings:
    """What ``measure_branching`` needs besides a run's configuration."""

    budget_tokens: int
    """Most tokens that are sampled, the first answers included."""
    alternatives: int = 1
    """Tokens tried at each position besides the kept one, the most likely first."""
    continuations: int = 8
    """Endings of each token."""
    keep_fraction: float = 0.2
    """The share of tokens that counts as high entropy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPair:
    """What came out at the two positions of an answer; a piece of the measurement."""

    spent: int
    """Tokens sampled."""
    positions: tuple[Position, ...]
    """The two, or none if the pair cannot be used; see ``_follow``."""


def measure_branching(
    config: RunConfig,
    settings: BranchSettings,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> Branching:
    """Write results/branching.json in ``root`` and return its contents; docs/dynamics.md.

    Started again with the same settings it goes on after the last measured pair; the budget may be
    larger then.

    Raises:
        ConfigError: the budget does not cover the first answers.
        Interrupted: ``should_stop()`` turned true; pairs measured so far stay.
    """
    _check(config, settings)
    with RunDirectory.claim(root) as directory:
        folder = directory.completions_dir("branching")
        pieces = Pieces.open(folder, _decisive(config, settings))
        with closing(build_sampling(config)) as parts:
            answers = _answers(parts, config, settings, pieces, should_stop)
            directory.describe(config.model_dump_json(indent=2))
            spent = sum(len(answer.completion) for answer in answers)
            note(f"{len(answers)} answers of {spent} tokens sampled")
            pairs = draw_pairs(
                answers, keep_fraction=settings.keep_fraction, seed=config.evaluation.seed
            )
            continuer = Continuer(
                parts=parts,
                settings=sample_settings(config, "branch"),
                continuations=settings.continuations,
            )
            measured = _measure(continuer, pairs, settings, pieces, spent, should_stop, note)
        spent += sum(pair.spent for pair in measured)
        result = _result(config, settings, measured, spent, len(pairs))
        write_result(root, result)
    return result


def _check(config: RunConfig, settings: BranchSettings) -> None:
    if settings.continuations < 2:
        raise ConfigError("--continuations must be at least 2: the noise of one is unknown")
    if settings.alternatives < 1:
        raise ConfigError("--alternatives must be at least 1")
    if not 0 < settings.keep_fraction < 1:
        raise ConfigError(f"--keep-fraction {settings.keep_fraction:g} is not in (0, 1)")
    evaluation, limit = config.evaluation, config.rollout.max_new_tokens
    worst = evaluation.problems * evaluation.samples * limit
    if worst > settings.budget_tokens:
        raise ConfigError(
            f"--budget-tokens {settings.budget_tokens} does not cover the first answers: "
            f"{evaluation.problems} problems x {evaluation.samples} samples of up to {limit} "
            f"tokens are {worst}; ask for fewer --problems or a larger budget"
        )


def _decisive(config: RunConfig, settings: BranchSettings) -> dict[str, Any]:
    """What decides the measurements: all but the budget."""
    decides = asdict(settings)
    del decides["budget_tokens"]
    return {**decides, "config": config.model_dump(mode="json")}


def _answers(
    parts: SamplingParts,
    config: RunConfig,
    settings: BranchSettings,
    pieces: Pieces,
    should_stop: Callable[[], bool],
) -> list[Answer]:
    """Sampled, or read back, and teacher-forced."""
    rows = list(read_completions(sample_held_out(parts, config, pieces.folder, should_stop)))
    problems = numbered_problems(parts, config)
    prompts = [
        Prompt(
            problem=problems[row.serial], token_ids=tuple(np.asarray(row.prompt_token_ids).tolist())
        )
        for row in rows
    ]
    scored = score_completions(
        parts.loaded.model,
        [(p.token_ids, row.completion) for p, row in zip(prompts, rows, strict=True)],
        temperature=config.rollout.temperature,
        top_k=settings.alternatives + 1,  # the sampled token may be one of them
        max_tokens=config.training.micro_batch_tokens,
    )
    return [
        Answer(prompt=prompt, number=number, sample=row.sample, completion=completion)
        for number, (prompt, row, completion) in enumerate(zip(prompts, rows, scored, strict=True))
    ]


# ---- measuring ----------------------------------------------------------------------------------


def _measure(
    continuer: Continuer,
    pairs: Sequence[Pair],
    settings: BranchSettings,
    pieces: Pieces,
    spent: int,
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> list[MeasuredPair]:
    """Pairs in order until one might pass the budget; each is a piece of its own."""
    measured: list[MeasuredPair] = []
    for number, pair in enumerate(pairs):
        places: dict[Kind, Place] = {
            "high": pair.answer.place(pair.high, "high", settings.alternatives),
            "low": pair.answer.place(pair.low, "low", settings.alternatives),
        }
        worst = sum(map(continuer.worst_case, places.values()))
        if spent + worst > settings.budget_tokens:  # of a pair on file too: a budget, one result
            note(f"the next pair may need {worst} tokens: the budget ends here")
            break
        key = f"pair_{number:05d}.json"
        if not pieces.done(key):
            if should_stop():
                raise Interrupted("stopped between two pairs")
            if (number + 1) % NOTE_EVERY == 0:
                note(f"measuring pair {number + 1} of {len(pairs)}")
        measured.append(
            pieces.get(
                key,
                MeasuredPair,
                lambda pair=pair, places=places: _follow(continuer, pair, places, should_stop),
            )
        )
        spent += measured[-1].spent
    return measured


def _follow(
    continuer: Continuer, pair: Pair, places: dict[Kind, Place], should_stop: Callable[[], bool]
) -> MeasuredPair:
    """No positions if one has no alternative, or rewards too few to know their noise because a
    verifier failed."""
    found, spent = [], 0
    for kind, place in places.items():
        branches, tokens = continuer.follow(place, should_stop)
        spent += tokens
        if len(branches) > 1 and all(branch.measured for branch in branches):
            found.append(_position(continuer, pair.answer, kind, place, branches))
    return MeasuredPair(spent=spent, positions=tuple(found) if len(found) == 2 else ())


def _position(
    continuer: Continuer, answer: Answer, kind: Kind, place: Place, branches: Sequence[Branch]
) -> Position:
    decode = continuer.parts.loaded.tokenizer.decode
    (kept, _), *others = place.choices
    assert answer.completion.entropies is not None
    return Position(
        prompt_id=answer.prompt.problem.id,
        sample=answer.sample,
        position=place.position,
        kind=kind,
        entropy=float(answer.completion.entropies[place.position]),
        token_id=kept,
        text=decode([kept]),
        kept=branches[0],
        alternatives=tuple(
            Alternative(token_id=token, text=decode([token]), logprob=logprob, branch=branch)
            for (token, logprob), branch in zip(others, branches[1:], strict=True)
        ),
    )


# ---- branching.json -----------------------------------------------------------------------------


def _result(
    config: RunConfig,
    settings: BranchSettings,
    measured: Sequence[MeasuredPair],
    spent: int,
    pairs: int,
) -> Branching:
    positions = [position for pair in measured for position in pair.positions]
    gaps = summarise_gaps(positions, seed=config.evaluation.seed)
    return Branching(
        model=config.model.path,
        task=config.task_name,
        temperature=config.rollout.temperature,
        seed=config.evaluation.seed,
        keep_fraction=settings.keep_fraction,
        budget_tokens=settings.budget_tokens,
        spent_tokens=spent,
        continuations=settings.continuations,
        alternatives=settings.alternatives,
        prompts=len({position.prompt_id for position in positions}),
        pairs_possible=pairs,
        pairs_left_out=sum(not pair.positions for pair in measured),
        replacements=tuple(row for position in positions for row in _replacements(position)),
        high=gaps.high,
        low=gaps.low,
        difference=gaps.difference,
        resampled_difference=gaps.resampled_difference,
    )


def _replacements(position: Position) -> Iterator[Replacement]:
    """One for each alternative."""
    for alternative, weight in zip(position.alternatives, position.weights(), strict=True):
        yield Replacement(
            prompt_id=position.prompt_id,
            sample=position.sample,
            position=position.position,
            kind=position.kind,
            entropy=position.entropy,
            token=position.text,
            token_id=position.token_id,
            alternative=alternative.text,
            alternative_id=alternative.token_id,
            alternative_logprob=alternative.logprob,
            alternative_weight=float(weight),
            value_kept=position.kept.value,
            value_alternative=alternative.branch.value,
            squared_gap=squared_gap(position.kept, alternative.branch),
            continuations_kept=len(position.kept.rewards),
            continuations_alternative=len(alternative.branch.rewards),
        )
