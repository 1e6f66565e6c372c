"""From a problem to the model's tokens."""

from typing import Any

from forkpoint.errors import ConfigError, DataError, ModelError
from forkpoint.types import Problem, Prompt


class Prompter:
    """Applies a model's tokenizer and chat template, and sees to it that answers have room."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_positions: int | None = None,
        max_new_tokens: int = 1,
        setting: str = "rollout.max_new_tokens",
    ) -> None:
        """
        Args:
            max_positions: how many tokens the model reads, see ``policy.body.context_length``.
            max_new_tokens: how long an answer may be.
            setting: what says so, for messages.

        Raises:
            ConfigError: the model reads no prompt beside such an answer.
        """
        self._tokenizer = tokenizer
        self._max_positions = max_positions
        self._max_new_tokens = max_new_tokens
        self._setting = setting
        if max_positions is not None and max_new_tokens >= max_positions:
            raise ConfigError(
                f"{setting} = {max_new_tokens} leaves no room for a prompt: the model "
                f"reads at most {max_positions} tokens"
            )

    def __call__(self, problem: Problem) -> Prompt:
        """
        Raises:
            ModelError: the problem is a chat and the tokenizer has no chat template.
            DataError: the prompt is empty, cannot be encoded, or is too long for the model to read
                it and an answer.
        """
        try:
            ids = self._encode(problem)
        except ModelError:
            raise
        except Exception as error:  # tokenizers raises its errors as plain Exception
            raise DataError(
                f"the prompt of problem {problem.id!r} cannot be encoded by the model's tokenizer "
                f"or chat template: {error}; it is {_short(problem.prompt)}"
            ) from error
        if not ids:
            raise DataError(f"the prompt of problem {problem.id!r} has no tokens")
        limit = self._max_positions
        if limit is not None and len(ids) + self._max_new_tokens > limit:
            raise DataError(
                f"the prompt of problem {problem.id!r} has {len(ids)} tokens, and an answer may "
                f"have {self._max_new_tokens}; the model reads at most {limit} "
                f"together: lower {self._setting}, or leave the problem out"
            )
        return Prompt(problem=problem, token_ids=tuple(ids))

    def _encode(self, problem: Problem) -> list[int]:
        if isinstance(problem.prompt, str):
            return self._tokenizer(problem.prompt)["input_ids"]
        return self._chat([dict(message) for message in problem.prompt])

    def _chat(self, messages: list[dict[str, str]]) -> list[int]:
        if getattr(self._tokenizer, "chat_template", None) is None:
            raise ModelError(
                "the task asks through a chat template and the tokenizer has none (a base model?): "
                "set task.chat = false, or use an instruction-tuned model"
            )
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]


def _short(prompt: object) -> str:
    text = repr(prompt)
    return text if len(text) <= 120 else f"{text[:120]}.."
