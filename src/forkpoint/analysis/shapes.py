"""What others' files of completions look like: the table of their kinds, told apart by columns.

Each reader takes a row and yields ``Entry``s of text; ``sources`` makes stored completions of them.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from forkpoint.errors import DataError
from forkpoint.runs.rows import Row, column_names, short
from forkpoint.types import FinishReason, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a file says of a completion, before it is in this model's tokens."""

    place: str
    """``file, row n``."""
    text: str
    prompt: str | tuple[Message, ...]
    prompt_id: str | None = None
    """None: prompts of equal text are one."""
    reward: float | None = None
    """As it stands in the file, NaN and infinities included."""
    finish_reason: FinishReason = FinishReason.UNKNOWN
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] | None = None
    has_special_tokens: bool = False
    """The prompt's text holds the special tokens it was sampled after: none must be added."""


Reader: TypeAlias = Callable[[Row], Iterator[Entry]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Columns named by the user; None: found by the kind of file."""

    prompt: str | None = None
    completion: str | None = None
    reward: str | None = None


def reader_of(row: Row, named: Columns) -> Reader:
    """The reader of the kind of file whose first row is ``row``; columns that are named win.

    Raises:
        DataError: it is none of them, or has no such column.
    """
    for name in (named.prompt, named.completion, named.reward):
        if name is not None:
            _value(row, name)
    if named.prompt or named.completion:
        reader = plain(named.completion or "completion", named.prompt)
    else:
        reader = _reader_of_kind(row)
    return reader if named.reward is None else _with_reward(reader, named.reward)


def _reader_of_kind(row: Row) -> Reader:
    for columns, reader in KINDS:
        if set(columns) <= row.values.keys():
            return reader
    raise DataError(
        f"{row.place}: no known kind of rollouts has the columns {column_names(row.values)}; name "
        "them by --prompt-column and --completion-column"
    )


# ---- readers -------------------------------------------------------------------------------------


def plain(completion: str, prompt: str | None, reward: str = "reward") -> Reader:
    """A reader of one completion per row, of text or of chat messages."""

    def read(row: Row) -> Iterator[Entry]:
        values = row.values
        example = values.get("example_id")
        yield Entry(
            place=row.place,
            text=_completion_text(row, completion),
            prompt="" if prompt is None else _prompt(row, _value(row, prompt)),
            prompt_id=None if example is None else str(example),
            reward=_number(row, reward) if reward in values else _first_mark_of_trl(row),
            finish_reason=_finish_reason(values),
        )

    return read


def forkpoint(row: Row) -> Iterator[Entry]:
    """completions/**/*.parquet of this package."""
    values = row.values
    prompt_ids = values["prompt_token_ids"]
    yield Entry(
        place=row.place,
        text=_text(row, "text"),
        prompt=_text(row, "prompt"),
        prompt_id=str(values["prompt_id"]),
        reward=_number(row, "verdict"),
        finish_reason=_stored_reason(row),
        prompt_token_ids=None if prompt_ids is None else _ids(row, "prompt_token_ids"),
        token_ids=_ids(row, "token_ids"),
        has_special_tokens=True,
    )


def lm_eval(row: Row) -> Iterator[Entry]:
    """``--log_samples``: a list of answers to one request, and metrics by name."""
    values = row.values
    answers = values["resps"]
    answers = answers[0] if answers and isinstance(answers[0], list) else answers
    metrics = values.get("metrics") or ["exact_match"]
    for answer in answers or [None]:
        if not isinstance(answer, str):
            raise DataError(
                f"{row.place}: resps holds {short(answer)}, not text: a task that only compares "
                "likelihoods has no chains of thought"
            )
        yield Entry(
            place=row.place,
            text=answer,
            prompt=_prompt(row, _lm_eval_context(row)),
            prompt_id=None if "doc_id" not in values else str(values["doc_id"]),
            reward=_number(row, metrics[0]) if metrics[0] in values else None,
        )


KINDS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("prompt_id", "prompt_token_ids", "text", "verdict", "token_ids", "pieces"), forkpoint),
    (("resps", "arguments"), lm_eval),
    # TRL's completion logs, prime-rl's and verifiers' results, anybody's own
    (("prompt", "completion"), plain("completion", "prompt")),
    # verl's ``trainer.rollout_data_dir``: texts decoded without special tokens
    (("input", "output"), plain("output", "input", "score")),
    (("text",), plain("text", None)),
)
"""A file with all of the columns is of the kind; the first that fits."""


def _with_reward(reader: Reader, column: str) -> Reader:
    def read(row: Row) -> Iterator[Entry]:
        reward = _number(row, column)
        return (replace(entry, reward=reward) for entry in reader(row))

    return read


# ---- values --------------------------------------------------------------------------------------


def _value(row: Row, name: str) -> Any:
    if name not in row.values:
        raise DataError(f"{row.place} has no column {name!r}; it has {column_names(row.values)}")
    return row.values[name]


def _text(row: Row, name: str) -> str:
    return _encodable(row, name, _value(row, name))


def _encodable(row: Row, name: str, value: Any) -> str:
    """The text; null is no text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{row.place}: column {name!r} holds {short(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise DataError(
            f"{row.place}: column {name!r} is not UTF-8 text: {error.reason} at {error.start}"
        ) from None
    return value


def _completion_text(row: Row, name: str) -> str:
    """Of a text, or of the one message of an answer."""
    value = _value(row, name)
    if not isinstance(value, list):
        return _encodable(row, name, value)
    messages = _messages(row, value)
    if len(messages) != 1:
        raise DataError(
            f"{row.place}: the completion has {len(messages)} messages; only answers of one turn "
            "can be analysed"
        )
    return messages[0]["content"]


def _prompt(row: Row, value: Any) -> str | tuple[Message, ...]:
    return _messages(row, value) if isinstance(value, list) else _encodable(row, "prompt", value)


def _messages(row: Row, value: list[Any]) -> tuple[Message, ...]:
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict) or "role" not in message:
            raise DataError(
                f"{row.place}: {short(message)} is no chat message with role and content"
            )
        if message.get("reasoning_content"):
            raise DataError(
                f"{row.place}: a message keeps its reasoning apart from its content, so the text "
                "that the model wrote is not known"
            )
        content = _encodable(row, "content", message.get("content"))
        messages.append({"role": str(message["role"]), "content": content})
    return tuple(messages)


def _lm_eval_context(row: Row) -> Any:
    """Of the first request: ``[[context, settings]]``, or by name, or a chat in JSON."""
    arguments = row.values["arguments"]
    try:
        if isinstance(arguments, dict):
            context = arguments["gen_args_0"]["arg_0"]
        else:
            context = arguments[0][0]
        context = context[0] if isinstance(context, list) else context
    except (KeyError, IndexError, TypeError):
        raise DataError(f"{row.place}: arguments holds no context: {short(arguments)}") from None
    return _chat_in_json(context)


def _chat_in_json(context: Any) -> Any:
    if not isinstance(context, str) or not context.startswith("[{"):
        return context
    try:
        return json.loads(context)
    except ValueError:
        return context


def _stored_reason(row: Row) -> FinishReason:
    given = row.values["finish_reason"]
    try:
        return FinishReason(given)
    except ValueError:
        known = ", ".join(FinishReason)
        text = f"column 'finish_reason' holds {short(given)}, not one of {known}"
        raise DataError(f"{row.place}: {text}") from None


def _ids(row: Row, name: str) -> tuple[int, ...]:
    value = _value(row, name)
    if not isinstance(value, list) or not all(isinstance(i, int) for i in value):
        raise DataError(f"{row.place}: column {name!r} holds {short(value)}, not token ids")
    return tuple(value)


def _number(row: Row, name: str) -> float | None:
    value = _value(row, name)
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise DataError(f"{row.place}: column {name!r} holds {short(value)}, not a number")
    try:
        return float(value)
    except OverflowError:
        raise DataError(f"{row.place}: column {name!r} holds a number beyond 1e308") from None


def _first_mark_of_trl(row: Row) -> float | None:
    """The first reward function's in TRL's logs, whose column follows the completion's."""
    names = list(row.values)
    if "advantage" not in names or "completion" not in names:
        return None
    following = names[names.index("completion") + 1 :][:1]
    return None if following in ([], ["advantage"]) else _number(row, following[0])


def _finish_reason(values: dict[str, Any]) -> FinishReason:
    reason = values.get("finish_reason")
    if reason in ("stop", "length"):
        return FinishReason(reason)
    if isinstance(truncated := values.get("is_truncated"), bool):
        return FinishReason.LENGTH if truncated else FinishReason.STOP
    return FinishReason.UNKNOWN
