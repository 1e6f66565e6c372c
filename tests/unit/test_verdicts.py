"""Which reward is the verifier, and that it alone says what is right and which groups teach."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forkpoint.config import RunConfig, parse_config
from forkpoint.evaluation.evaluate import accuracy, is_right, tally
from forkpoint.evaluation.held_out import sample_answers
from forkpoint.ranks import ALONE
from forkpoint.rewards import build as build_module
from forkpoint.rewards import build_scorer
from forkpoint.runs.completions import read_completions, write_completions
from forkpoint.sampling import RowMaker, StepRollouts, collect_groups
from forkpoint.sampling.base import SamplingSettings
from forkpoint.sampling.collect import teaches
from forkpoint.sampling.scripted import ScriptedEngine
from forkpoint.types import Completion, FinishReason, Problem, Prompt, Score
from tests.conftest import NumberTokenizer, make_group

PATIENT_S = 60.0
FORMAT = {"type": "format", "pattern": ".*boxed.*", "weight": 0.1, "timeout_s": PATIENT_S}
INTEGER = {"type": "integer", "weight": 1.0, "timeout_s": PATIENT_S}
CUSTOM = {"type": "custom", "path": "tests.unit.reward_functions:one"}
MATH, TASK, CODE = {"type": "math"}, {"type": "task"}, {"type": "code"}

# ---- one definition ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "index"),
    [
        ([TASK], 0),
        ([FORMAT, TASK], 1),
        ([FORMAT, CUSTOM, MATH, TASK], 2),
        ([CUSTOM, INTEGER], 1),
        ([CUSTOM, FORMAT, CODE], 2),
        ([FORMAT, CUSTOM, CUSTOM], 1),
        ([FORMAT, FORMAT], 0),
    ],
)
def test_the_verifier_is_the_first_that_judges_answers(
    rewards: list[dict[str, Any]], index: int
) -> None:
    configs = parse_config({"rewards": rewards, "scoring": {"allow_code": True}}).rewards
    assert build_module.verifier_of(configs) is configs[index]


# ---- groups that teach ---------------------------------------------------------------------------

RIGHT, WRONG, BARE = r"\boxed{7}", r"\boxed{8}", "7"
GROUPS: dict[str, list[tuple[str, int]]] = {
    "mixed": [(RIGHT, 2), (WRONG, 2), (WRONG, 2)],
    "one wrong, and it is long": [(RIGHT, 2), (RIGHT, 2), (WRONG, 9)],
    # every answer of these was judged alike; only form and length differ
    "wrong, one long": [(WRONG, 2), (WRONG, 2), (WRONG, 9)],
    "wrong, one without form": [(WRONG, 2), (BARE, 2), (WRONG, 2)],
    "right, one long": [(RIGHT, 2), (RIGHT, 9), (RIGHT, 2)],
}
"""Texts and lengths of a problem's three answers; the buffer before the limit begins at 6."""
CONFIG = {
    "rewards": [FORMAT, INTEGER],
    "overlong": {"buffer": 4},
    "rollout": {
        "prompts_per_step": len(GROUPS),
        "group_size": 3,
        "max_new_tokens": 10,
        "max_rounds": 1,
    },
}


def answer(text: str, tokens: int) -> Completion:
    return Completion(
        token_ids=(5,) * tokens,
        logprobs=(-1.0,) * tokens,
        entropies=(0.5,) * tokens,
        finish_reason=FinishReason.STOP,
        text=text,
    )


def prompter(problem: Problem) -> Prompt:
    return Prompt(problem=problem, token_ids=(2, 3))


@pytest.fixture(scope="module")
def rollouts() -> StepRollouts:
    """A round of ``GROUPS``, scored by form, by the integer in the box, and by length."""
    config = parse_config(CONFIG)
    problems = [Problem(id=name, prompt="?", columns={"answer": 7}) for name in GROUPS]
    task: Any = SimpleNamespace(
        problem=lambda number: problems[number], columns={"answer"}, verifier=None
    )
    script = {
        (name, sample): answer(*given)
        for name, answers in GROUPS.items()
        for sample, given in enumerate(answers)
    }
    scorer = build_scorer(config, task)
    try:
        parts = SimpleNamespace(
            task=task,
            prompter=prompter,
            engine=ScriptedEngine(script),
            scorer=scorer,
            ranks=ALONE,
        )
        return collect_groups(
            parts,  # pyright: ignore[reportArgumentType]
            config.rollout,
            SamplingSettings(max_new_tokens=10, temperature=1.0, seed=0, step=1),
            first_serial=0,
        )
    finally:
        scorer.close()


def test_a_group_is_accepted_iff_the_verifier_judged_its_answers_differently(
    rollouts: StepRollouts,
) -> None:
    accepted = [group.prompt.problem.id for group in rollouts.accepted]
    assert accepted == ["mixed", "one wrong, and it is long"]
    # the rewards of the rejected groups do differ
    for group in rollouts.rejected:
        assert len({r.score.reward for r in group.rollouts_G}) == 2


def test_rewards_do_not_depend_on_the_order_of_the_recipe() -> None:
    # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in binary; the sum that is rounded once does not
    task: Any = SimpleNamespace(columns=set(), verifier=None)
    rewards = []
    for weights in ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1)):
        parts = [{**FORMAT, "weight": weight} for weight in weights]
        scorer = build_scorer(parse_config({"rewards": parts}), task)
        try:
            (score,) = scorer.score([(Problem(id="p", prompt="?"), answer(RIGHT, 2))])
        finally:
            scorer.close()
        rewards.append(score.reward)
    assert rewards == [0.6, 0.6]


def test_accuracy_is_the_verifiers_wherever_it_stands(rollouts: StepRollouts) -> None:
    # 1/3 + 2/3 + 0 + 0 + 1 of five problems; by form, which stands first, it would be 14/15
    assert accuracy(tally(rollouts.groups), seed=0).value == pytest.approx(2 / 5)
    long = next(g for g in rollouts.groups if g.prompt.problem.id == "right, one long")
    assert [is_right(r) for r in long.rollouts_G] == [True] * 3


@pytest.mark.parametrize(
    ("samples", "accepted"),
    [
        # graded verdicts: 0.3 is not 0.1 + 0.2, but no verifier means that difference
        ([(1.0, 0.3), (0.0, 0.1 + 0.2)], False),
        ([(1.0, 0.3), (1.0, 0.4)], True),
        # a sample that is left out has no say, nor has one that the verifier failed on
        ([(None, 1.0), (0.0, 0.0)], False),
        ([(None, None), (0.0, 0.0)], False),
        ([(None, None), (None, None)], False),
    ],
)
def test_which_verdicts_differ(
    samples: list[tuple[float | None, float | None]], accepted: bool
) -> None:
    group = make_group(0, [0.0] * len(samples), [2] * len(samples))
    rollouts = tuple(
        replace(rollout, score=Score(reward=reward, verdict=verdict))
        for rollout, (reward, verdict) in zip(group.rollouts_G, samples, strict=True)
    )
    assert teaches(replace(group, rollouts_G=rollouts)) is accepted


# ---- on the way to files and back ----------------------------------------------------------------


def test_the_verdict_is_recorded(rollouts: StepRollouts, tmp_path: Path) -> None:
    rows = RowMaker(NumberTokenizer(), "grpo").rows(1, rollouts, None)
    path = tmp_path / "step_00001.parquet"
    write_completions(path, rows)
    expected = [float(text == RIGHT) for answers in GROUPS.values() for text, _ in answers]
    found = list(read_completions([path]))
    assert [row.score.verdict for row in found] == expected
    assert [row.score.right for row in found] == [bool(verdict) for verdict in expected]
    answers = [given for group in GROUPS.values() for given in group]
    assert [(row.completion.text, len(row.completion)) for row in found] == answers
    assert [(row.serial, row.sample) for row in found] == [
        (p, s) for p in range(5) for s in range(3)
    ]
    accepted = {row.prompt_id for row in found if row.accepted}
    assert accepted == {"mixed", "one wrong, and it is long"}


@pytest.mark.parametrize(
    ("verdict", "right"), [(1.0, True), (2.0, True), (0.5, False), (None, None)]
)
def test_right_means_the_verifier_gave_full_marks(
    verdict: float | None, right: bool | None
) -> None:
    assert Score(reward=0.3, verdict=verdict).right is right


def test_an_analysis_stores_the_verdict() -> None:
    config: RunConfig = parse_config({"evaluation": {"samples": 1}})
    score = Score(reward=1.1, verdict=0.0, parts={"format": 1.0, "integer": 0.0})
    prompt = Prompt(problem=Problem(id="p", prompt="?"), token_ids=(2,))
    parts: Any = SimpleNamespace(
        engine=ScriptedEngine({("p", 0): answer(WRONG, 2)}),
        scorer=SimpleNamespace(score=lambda pairs, should_stop: [score]),
        loaded=SimpleNamespace(tokenizer=NumberTokenizer()),
        ranks=ALONE,
    )
    (row,) = sample_answers(parts, config, {0: prompt}, lambda: False)
    assert row.score == score
