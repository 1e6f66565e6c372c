"""From a problem to the model's tokens."""

from typing import Any

from forkpoint.errors import DataError, ModelError
from forkpoint.types import Problem, Prompt


class Prompter:
    """Applies a model's tokenizer and chat template."""

    def __init__(self, tokenizer: Any, *, max_positions: int | None = None) -> None:
        """
        Args:
            max_positions: what the model can read; a longer prompt is an error, not cut in silence.
        """
        self._tokenizer = tokenizer
        self._max_positions = max_positions

    def __call__(self, problem: Problem) -> Prompt:
        """
        Raises:
            ModelError: the problem is a chat and the tokenizer has no chat template.
            DataError: the prompt is empty or longer than the model can read.
        """
        if isinstance(problem.prompt, str):
            ids = self._tokenizer(problem.prompt)["input_ids"]
        else:
            ids = self._chat([dict(message) for message in problem.prompt])
        if not ids:
            raise DataError(f"the prompt of problem {problem.id!r} has no tokens")
        if self._max_positions is not None and len(ids) >= self._max_positions:
            raise DataError(
                f"the prompt of problem {problem.id!r} has {len(ids)} tokens; the model reads "
                f"at most {self._max_positions}"
            )
        return Prompt(problem=problem, token_ids=tuple(ids))

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
