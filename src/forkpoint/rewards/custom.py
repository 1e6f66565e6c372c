"""Reward functions of yours, with TRL's signature."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from forkpoint.dotted import resolve
from forkpoint.types import Completion, Problem


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
            prompts=[_prompt(problem) for problem, _ in samples],
            completions=[_answer(problem, completion) for problem, completion in samples],
            completion_ids=[completion.token_ids.tolist() for _, completion in samples],
            **{name: [problem.columns.get(name) for problem, _ in samples] for name in names},
        )
        if not isinstance(given, list | tuple) or len(given) != len(samples):
            raise TypeError(f"{self.path} must return a list with one reward per completion")
        return given


def _prompt(problem: Problem) -> Any:
    if isinstance(problem.prompt, str):
        return problem.prompt
    return [dict(message) for message in problem.prompt]


def _answer(problem: Problem, completion: Completion) -> Any:
    if isinstance(problem.prompt, str):
        return completion.text
    return [{"role": "assistant", "content": completion.text}]
