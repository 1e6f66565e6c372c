"""From ``[[rewards]]`` to a scorer; reward functions of yours, with TRL's signature."""

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forkpoint.config import RunConfig
from forkpoint.config.rewards import (
    CODE_IS_OFF,
    CodeRewardConfig,
    CustomRewardConfig,
    FormatRewardConfig,
    IntegerRewardConfig,
    MathRewardConfig,
    RewardConfig,
    TaskRewardConfig,
)
from forkpoint.dotted import GIVEN, resolve
from forkpoint.errors import ConfigError
from forkpoint.rewards.scorer import OVERLONG, RewardFunction, Scorer
from forkpoint.tasks.base import Task, require_column
from forkpoint.types import Completion, Problem
from forkpoint.verifiers import (
    CodeVerifier,
    FormatVerifier,
    IntegerVerifier,
    MathVerifier,
    Verifier,
)
from forkpoint.verifiers.sandbox import find_sandbox

ANSWER = "answer"
"""The name of the part that says which completions give the same answer."""
SILENT = 0.0
"""That part of a completion without an answer."""


@dataclass(frozen=True, slots=True)
class OfColumns:
    """A verifier as a reward function."""

    verifier: Verifier

    def __call__(self, problem: Problem, completion: Completion) -> float | None:
        return self.verifier(problem.columns, completion.text)


@dataclass(frozen=True, slots=True)
class CustomFunction:
    """Calls ``f(prompts=[..], completions=[..], completion_ids=[..], **columns)``.

    As in TRL, a chat prompt is a list of messages and its completion a list of one, and the
    function returns a list of numbers or None. A column that a problem lacks is None.
    """

    path: str

    def __call__(self, problem: Problem, completion: Completion) -> float | None:
        return self.batch([(problem, completion)])[0]

    def batch(self, samples: Sequence[tuple[Problem, Completion]]) -> Sequence[Any]:
        """What the function gives for several samples in one call.

        Raises:
            TypeError: it did not return a list with one reward per completion.
        """
        function = resolve(self.path, key="rewards.path")
        names = dict.fromkeys(name for problem, _ in samples for name in problem.columns)
        given = function(
            prompts=[
                p.prompt if isinstance(p.prompt, str) else [dict(message) for message in p.prompt]
                for p, _ in samples
            ],
            completions=[
                c.text if isinstance(p.prompt, str) else [{"role": "assistant", "content": c.text}]
                for p, c in samples
            ],
            completion_ids=[completion.token_ids.tolist() for _, completion in samples],
            **{name: [problem.columns.get(name) for problem, _ in samples] for name in names},
        )
        if not isinstance(given, list | tuple) or len(given) != len(samples):
            raise TypeError(f"{self.path} must return a list with one reward per completion")
        return given


@dataclass(frozen=True, slots=True)
class SameAnswers:
    """Which completions of one problem give the same answer, as a reward function.

    Equal numbers are equivalent answers, by the verifier that judges them; ``SILENT`` is none. One
    completion alone is compared with nothing: then equal numbers are equal texts.
    """

    verifier: IntegerVerifier | MathVerifier

    def __call__(self, problem: Problem, completion: Completion) -> float:
        return _number(self.verifier.answer(completion.text))

    def batch(self, samples: Sequence[tuple[Problem, Completion]]) -> list[float]:
        """The same for all completions of a problem."""
        answers = [self.verifier.answer(completion.text) for _, completion in samples]
        return [_number(answer) for answer in self.verifier.merged(answers)]


def _number(answer: str | None) -> float:
    """Equal for equal texts; a float holds it exactly."""
    if answer is None:
        return SILENT
    digest = hashlib.blake2b(answer.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return 1.0 + (int.from_bytes(digest, "big") >> 12)


def build_scorer(config: RunConfig, task: Task, *, compared: int = 1) -> Scorer:
    """Check that every reward can work on this task, then start the workers.

    Args:
        compared: if it is more than 1, every score has a part ``ANSWER`` as well, of no weight: see
            ``SameAnswers``. Completions are then scored so many to a problem, in a row. Where the
            verifier is neither ``math`` nor ``integer`` there is none.

    Raises:
        ConfigError, DataError: a task without a verifier, a missing column, package or function.
        RewardError: programs are to be run and this machine has no sandbox for them.
    """
    functions: list[RewardFunction] = []
    verifier = verifier_of(config.rewards)
    for reward in config.rewards:
        if reward.type == "code" and not config.scoring.allow_code:
            raise ConfigError(CODE_IS_OFF)  # a configuration need not come from a file
        name, call, imports = _function(reward, task)
        taken = {OVERLONG, *(f.name for f in functions)}
        while name in taken:
            name = f"{name}_{len(functions) + 1}"
        functions.append(
            RewardFunction(
                name=name,
                call=call,
                weight=reward.weight,
                timeout_s=reward.timeout_s,
                is_verifier=reward is verifier,
                on_timeout=reward.on_timeout,
                batch_size=reward.batch_size if isinstance(reward, CustomRewardConfig) else 1,
                imports=imports,
                in_process=imports == (GIVEN,),
            )
        )
        judge = getattr(call, "verifier", None)
        if (
            reward is verifier
            and isinstance(judge, IntegerVerifier | MathVerifier)
            and compared > 1
        ):
            same = SameAnswers(judge)
            functions.append(
                RewardFunction(
                    name=ANSWER,
                    call=same,
                    weight=0.0,
                    timeout_s=reward.timeout_s,
                    batch_size=compared,
                    imports=imports,
                )
            )
    return Scorer(
        functions,
        config.overlong,
        max_new_tokens=config.rollout.max_new_tokens,
        scoring=config.scoring,
    )


def verifier_of(rewards: Sequence[RewardConfig]) -> RewardConfig:
    """Which of the rewards is the verifier, the one that says whether an answer is right.

    The first of type ``task``, ``math``, ``integer`` or ``code``; without one the first ``custom``
    one; without one the first. Accuracy and dynamic sampling go by it alone, wherever it stands in
    the recipe and whatever its weight is.
    """
    for kinds in (("task", "math", "integer", "code"), ("custom",)):
        for reward in rewards:
            if reward.type in kinds:
                return reward
    return rewards[0]


def _function(reward: RewardConfig, task: Task) -> tuple[str, Any, tuple[str, ...]]:
    """The name of a reward's part, the callable that gives it, and what that loads first."""
    match reward:
        case TaskRewardConfig():
            if task.verifier is None:
                raise ConfigError(
                    "rewards.type = 'task', but this task has no verifier of its own: use 'math', "
                    "'integer', 'code', 'format' or 'custom'"
                )
            imports = getattr(task.verifier, "imports", ())
            return "task", OfColumns(task.verifier), imports
        case MathRewardConfig():
            if importlib.util.find_spec("math_verify") is None:
                raise ConfigError("this reward needs math_verify: pip install 'forkpoint[math]'")
            _require_answer(task, reward.answer_column)
            verifier = MathVerifier(reward.answer_column)
            return "math", OfColumns(verifier), verifier.imports
        case IntegerRewardConfig():
            _require_answer(task, reward.answer_column)
            return "integer", OfColumns(IntegerVerifier(reward.answer_column)), ()
        case CodeRewardConfig():
            name = reward.tests_column
            require_column(task.columns, name.split(".")[0], "rewards.tests_column", "the data")
            sandbox = find_sandbox(
                reward.python, seconds=reward.test_seconds, memory_gb=reward.memory_gb
            )
            return "code", OfColumns(CodeVerifier(name, sandbox)), ()
        case FormatRewardConfig():
            try:
                re.compile(reward.pattern)
            except re.error as error:
                raise ConfigError(
                    f"rewards.pattern = {reward.pattern!r} is not a regular expression: {error}"
                ) from error
            return "format", OfColumns(FormatVerifier(reward.pattern)), ()
        case CustomRewardConfig():
            resolve(reward.path, key="rewards.path")
            module, _, name = reward.path.partition(":")
            return name, CustomFunction(reward.path), (module,)


def _require_answer(task: Task, path: str) -> None:
    """Check the part before the first dot; nested values are found by the verifier."""
    require_column(task.columns, path.split(".")[0], "rewards.answer_column", "the data")
