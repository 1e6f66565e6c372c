"""Are high-entropy positions decisions? Replace a token there and see how far the reward moves.

Answers to held-out problems are sampled and teacher-forced. In each answer one position is drawn
from the top tokens by entropy and one from the rest; at each the token is kept, and replaced by its
most likely alternatives; from all of them the answer is finished n times. See ``gap`` for what is
computed, and ``continuations`` for how.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forkpoint.analysis.branch_points import Answer, Pair, draw_pairs, place_of
from forkpoint.analysis.continuations import Continuer, Place
from forkpoint.analysis.gap import (
    Alternative,
    Branch,
    GapGroup,
    Position,
    squared_gap,
    summarise_gaps,
)
from forkpoint.analysis.held_out import numbered_problems, sample_held_out, sample_settings
from forkpoint.config import RunConfig
from forkpoint.errors import ConfigError, Interrupted, RunError
from forkpoint.policy.teacher import score_completions
from forkpoint.runs import RunDirectory
from forkpoint.runs.atomic import write_json
from forkpoint.runs.completions import read_completions
from forkpoint.runs.results import Estimate
from forkpoint.runs.resume import Pieces
from forkpoint.sampling import SamplingParts, build_sampling
from forkpoint.types import Problem, Prompt

SCHEMA = 1

NOTE_EVERY = 10
"""Pairs."""


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
class _Measured:
    positions: Sequence[Position]
    spent: int
    """Tokens sampled, the first answers included."""
    left_out: int
    """Pairs that were sampled and could not be used; see ``_follow``."""


def measure_branching(
    config: RunConfig,
    settings: BranchSettings,
    root: Path,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write analysis/branching.json in ``root`` and return its contents; docs/dynamics.md.

    Started again with the same settings it goes on after the last measured pair; the budget may be
    larger then.

    Raises:
        ConfigError: the budget does not cover the first answers.
        Interrupted: ``should_stop()`` turned true; pairs measured so far stay.
    """
    _check(config, settings)
    with RunDirectory.claim(root) as directory:
        folder = directory.analysis_dir / "branching"
        Pieces.open(folder, _described(config, settings))
        with closing(build_sampling(config)) as parts:
            answers = _answers(parts, config, settings, folder, should_stop)
            directory.describe(config.model_dump_json(indent=2))
            spent = sum(len(answer.completion) for answer in answers)
            note(f"{len(answers)} answers of {spent} tokens sampled")
            pairs = draw_pairs(
                answers,
                keep_fraction=settings.keep_fraction,
                seed=config.evaluation.seed,
            )
            continuer = Continuer(
                parts=parts,
                settings=sample_settings(config, "branch"),
                continuations=settings.continuations,
            )
            measured = _measure(continuer, pairs, settings, folder, spent, should_stop, note)
        summary = _summary(config, settings, measured, len(pairs))
        write_json(directory.analysis_dir / "branching.json", summary)
    return summary


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


def _described(config: RunConfig, settings: BranchSettings) -> dict[str, Any]:
    """What decides the measurements: all but the budget."""
    described = asdict(settings)
    del described["budget_tokens"]
    return {"schema": SCHEMA, **described, "config": config.model_dump(mode="json")}


def _answers(
    parts: SamplingParts,
    config: RunConfig,
    settings: BranchSettings,
    folder: Path,
    should_stop: Callable[[], bool],
) -> list[Answer]:
    """Sampled, or read back, and teacher-forced."""
    paths = sample_held_out(parts, config, folder / "completions", should_stop)
    rows = list(read_completions(paths))
    scored = score_completions(
        parts.loaded.model,
        ((row.prompt_token_ids, row.completion) for row in rows),
        temperature=config.rollout.temperature,
        top_k=settings.alternatives + 1,  # the kept token may be one of them
        max_tokens=config.training.micro_batch_tokens,
    )
    problems = {p.id: p for p in numbered_problems(parts, config).values()}
    return [
        Answer(
            prompt=_prompt(problems[row.prompt_id], row.prompt_token_ids),
            number=number,
            sample=row.sample,
            completion=completion,
        )
        for number, (row, completion) in enumerate(zip(rows, scored, strict=True))
    ]


def _prompt(problem: Problem, token_ids: Sequence[int]) -> Prompt:
    return Prompt(problem=problem, token_ids=tuple(token_ids))


# ---- measuring ----------------------------------------------------------------------------------


def _measure(
    continuer: Continuer,
    pairs: Sequence[Pair],
    settings: BranchSettings,
    folder: Path,
    spent: int,
    should_stop: Callable[[], bool],
    note: Callable[[str], None],
) -> _Measured:
    """Pairs in order until one might pass the budget; each has a file of its own."""
    positions: list[Position] = []
    left_out = 0
    for number, pair in enumerate(pairs):
        places = _places(pair, settings.alternatives)
        worst = sum(continuer.worst_case(place) for place in places.values())
        if spent + worst > settings.budget_tokens:  # of a pair on file too: a budget, one result
            note(f"the next pair may need {worst} tokens: the budget ends here")
            break
        path = folder / f"pair_{number:05d}.json"
        if not path.exists():
            if should_stop():
                raise Interrupted("stopped between two pairs")
            write_json(path, _follow(continuer, pair, places, should_stop))
            if (number + 1) % NOTE_EVERY == 0:
                note(f"{number + 1} of {len(pairs)} pairs measured")
        stored = _read(path)
        spent += stored["spent"]
        positions += map(_position, stored["positions"])
        left_out += not stored["positions"]
    return _Measured(positions=positions, spent=spent, left_out=left_out)


def _places(pair: Pair, alternatives: int) -> dict[str, Place]:
    return {
        "high": place_of(pair.answer, pair.high, "high", alternatives),
        "low": place_of(pair.answer, pair.low, "low", alternatives),
    }


def _follow(
    continuer: Continuer, pair: Pair, places: dict[str, Place], should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """The contents of a pair's file; no positions if one has no alternative, or rewards too few
    to know their noise because a verifier failed."""
    found, spent = [], 0
    for kind, place in places.items():
        branches, tokens = continuer.follow(place, should_stop)
        spent += tokens
        if len(branches) > 1 and all(branch.measured for branch in branches):
            found.append(_measured_position(continuer, pair, kind, place, branches))
    return {"spent": spent, "positions": [asdict(p) for p in found] if len(found) == 2 else []}


def _measured_position(
    continuer: Continuer, pair: Pair, kind: str, place: Place, branches: Sequence[Branch]
) -> Position:
    answer, position = pair.answer, len(place.prefix_ids)
    tokenizer = continuer.parts.loaded.tokenizer
    (kept, _), *others = place.choices
    return Position(
        prompt_id=answer.prompt.problem.id,
        sample=answer.sample,
        position=position,
        kind=kind,
        entropy=float(answer.entropies_T[position]),
        token_id=kept,
        text=tokenizer.decode([kept]),
        kept=branches[0],
        alternatives=tuple(
            Alternative(
                token_id=token, text=tokenizer.decode([token]), logprob=logprob, branch=branch
            )
            for (token, logprob), branch in zip(others, branches[1:], strict=True)
        ),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; delete it to measure it again") from error


def _position(stored: dict[str, Any]) -> Position:
    """``asdict`` undone."""
    alternatives = tuple(
        Alternative(**{**a, "branch": _branch(a["branch"])}) for a in stored["alternatives"]
    )
    return Position(**{**stored, "kept": _branch(stored["kept"]), "alternatives": alternatives})


def _branch(stored: dict[str, Any]) -> Branch:
    return Branch(rewards=tuple(stored["rewards"]), certain=stored["certain"])


# ---- branching.json -----------------------------------------------------------------------------


def _summary(
    config: RunConfig,
    settings: BranchSettings,
    measured: _Measured,
    pairs: int,
) -> dict[str, Any]:
    positions = measured.positions
    found = summarise_gaps(positions, seed=config.evaluation.seed)
    return {
        "schema": SCHEMA,
        "model": config.model.path,
        "task": config.task.type,
        "temperature": config.rollout.temperature,
        "seed": config.evaluation.seed,
        "keep_fraction": settings.keep_fraction,
        "budget_tokens": settings.budget_tokens,
        "spent_tokens": measured.spent,
        "continuations": settings.continuations,
        "alternatives": settings.alternatives,
        "prompts": len({p.prompt_id for p in positions}),
        "pairs_possible": pairs,
        "pairs_left_out": measured.left_out,
        "positions": [row for position in positions for row in _rows(position)],
        "groups": {kind: _group(group) for kind, group in found.groups.items()},
        "difference": _dict(found.difference),
        "resampled_difference": _dict(found.resampled_difference),
    }


def _rows(position: Position) -> Iterator[dict[str, Any]]:
    """One row for each alternative."""
    for alternative, weight in zip(position.alternatives, position.weights(), strict=True):
        yield {
            "prompt_id": position.prompt_id,
            "sample": position.sample,
            "position": position.position,
            "kind": position.kind,
            "entropy": position.entropy,
            "token": position.text,
            "token_id": position.token_id,
            "alternative": alternative.text,
            "alternative_id": alternative.token_id,
            "alternative_logprob": alternative.logprob,
            "alternative_weight": float(weight),
            "value_kept": position.kept.value,
            "value_alternative": alternative.branch.value,
            "squared_gap": squared_gap(position.kept, alternative.branch),
            "n_kept": len(position.kept.rewards),
            "n": len(alternative.branch.rewards),
        }


def _group(group: GapGroup) -> dict[str, Any]:
    return {
        "positions": group.positions,
        "gap": _dict(group.gap),
        "squared_gap": _dict(group.squared_gap),
        "resampled_squared_gap": _dict(group.resampled_squared_gap),
    }


def _dict(interval: Estimate | None) -> dict[str, Any] | None:
    return None if interval is None else interval.model_dump()
