"""Reward functions of yours, with TRL's signature."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forkpoint.dotted import resolve
from forkpoint.types import Completion, Problem


@dataclass(frozen=True, slots=True)
class CustomFunction:
    """Calls ``f(prompts=[..], completions=[..], completion_ids=[..], **columns)`` for one sample.

    One sample a call, so that a completion on which it raises or hangs costs no other its reward.
    As in TRL, a chat prompt is a list of messages and its completion a list of one.
    """

    path: str

    def __call__(self, problem: Problem, completion: Completion) -> float | None:
        function = resolve(self.path, key="rewards.path")
        prompt: Any = problem.prompt
        answer: Any = completion.text
        if not isinstance(prompt, str):
            prompt = [dict(message) for message in prompt]
            answer = [{"role": "assistant", "content": answer}]
        columns: Mapping[str, list[Any]] = {k: [v] for k, v in problem.columns.items()}
        given = function(
            prompts=[prompt],
            completions=[answer],
            completion_ids=[list(completion.token_ids)],
            **columns,
        )
        if not isinstance(given, list | tuple) or len(given) != 1:
            raise TypeError(f"{self.path} must return a list with one reward per completion")
        return None if given[0] is None else float(given[0])
