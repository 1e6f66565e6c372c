"""Completions that exist already, from anybody's files, in this model's tokens."""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from forkpoint.analysis.shapes import Columns, Entry, reader_of
from forkpoint.errors import DataError
from forkpoint.policy.body import context_length
from forkpoint.policy.load import LoadedModel
from forkpoint.runs.completions import StoredCompletion
from forkpoint.runs.rows import Row, find_files, read_rows, short
from forkpoint.sampling import Prompter
from forkpoint.types import Completion, Problem, Score


class CompletionFile:
    """A file of completions, or a folder of them, that can be read again and again."""

    def __init__(self, path: Path, columns: Columns, loaded: LoadedModel) -> None:
        self._path = path
        self._columns = columns
        self._encoder = _Encoder(loaded)
        self.without_text: list[str] = []
        """The places of completions without text, which are left out."""
        self.nan_rewards: list[str] = []
        """The places of rewards that are NaN, which are read as none."""

    def __iter__(self) -> Iterator[StoredCompletion]:
        """The completions in the order of the file.

        A reward of NaN is no reward: pandas, and with it TRL's logs, write a missing one so.

        Raises:
            DataError: naming the file and the row; an infinite reward among other causes.
        """
        self.without_text, self.nan_rewards = [], []
        counts: dict[bytes, list[int]] = {}  # prompt -> [its number, completions so far]
        found = False
        for entry in self._entries():
            if not entry.text and not entry.token_ids:
                self.without_text.append(entry.place)
                continue
            found = True
            number, sample = counts.setdefault(_key(entry), [len(counts), 0])
            counts[_key(entry)][1] += 1
            yield self._encoder(self._with_reward(entry), serial=number, sample=sample)
        if not found:
            raise DataError(f"{self.without_text[0]}: no completion has any text")

    def notes(self) -> list[str]:
        """A line for each thing that the last reading left out."""
        left_out = {
            "completions without text, left out": self.without_text,
            "rewards that are NaN, read as none": self.nan_rewards,
        }
        return [f"{what}: {len(at)} (the first: {at[0]})" for what, at in left_out.items() if at]

    def _with_reward(self, entry: Entry) -> Entry:
        if entry.reward is None or math.isfinite(entry.reward):
            return entry
        if math.isinf(entry.reward):
            raise DataError(
                f"{entry.place}: the reward is {entry.reward}; it must be finite, or null if "
                "there is none"
            )
        self.nan_rewards.append(entry.place)
        return replace(entry, reward=None)

    def _entries(self) -> Iterator[Entry]:
        for path in find_files(self._path):
            rows = read_rows(path)
            first = next(rows)
            reader = reader_of(first, self._columns)
            for row in chain([first], rows):
                if _same_filter(row, first):
                    yield from reader(row)


class _Encoder:
    """Text into token ids, or the stored ids if they are this tokenizer's."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._tokenizer = loaded.tokenizer
        self._size = loaded.model.get_input_embeddings().weight.shape[0]
        self._positions = context_length(loaded.model)
        self._prompter = Prompter(loaded.tokenizer)

    def __call__(self, entry: Entry, *, serial: int, sample: int) -> StoredCompletion:
        token_ids = self._completion_ids(entry)
        prompt_ids = self._prompt_ids(entry)
        if not prompt_ids:  # a text alone: something must predict its first token
            start = getattr(self._tokenizer, "bos_token_id", None)
            prompt_ids, token_ids = (
                ((start,), token_ids) if start is not None else (token_ids[:1], token_ids[1:])
            )
        self._check_length(entry.place, len(prompt_ids) + len(token_ids))
        text = isinstance(entry.prompt, str)
        return StoredCompletion(
            completion=Completion(
                token_ids=np.array(token_ids, np.int32),
                logprobs=np.full(len(token_ids), np.nan, np.float32),
                entropies=None,
                finish_reason=entry.finish_reason,
                text=entry.text,
            ),
            score=Score(reward=entry.reward, verdict=entry.reward),
            prompt_id=f"prompt_{serial}" if entry.prompt_id is None else entry.prompt_id,
            prompt=str(entry.prompt) if text else self._tokenizer.decode(list(prompt_ids)),
            serial=serial,
            sample=sample,
            prompt_token_ids=prompt_ids,
        )

    def _completion_ids(self, entry: Entry) -> tuple[int, ...]:
        if entry.token_ids is None:
            return self._encode(entry.place, entry.text)
        self._check_ids(entry.place, entry.token_ids, entry.text)
        return entry.token_ids

    def _prompt_ids(self, entry: Entry) -> tuple[int, ...]:
        if entry.prompt_token_ids is not None:
            self._check_range(entry.place, entry.prompt_token_ids)
            return entry.prompt_token_ids
        if entry.prompt in ("", ()):
            return ()
        if isinstance(entry.prompt, str) and entry.has_special_tokens:
            return self._encode(entry.place, entry.prompt)
        problem = Problem(id=entry.place, prompt=entry.prompt)
        try:
            return self._prompter(problem).token_ids
        except (TypeError, ValueError) as error:  # a chat template that expects something else
            raise DataError(f"{entry.place}: the prompt cannot be read: {error}") from error

    def _encode(self, place: str, text: str) -> tuple[int, ...]:
        try:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # tokenizers raises its errors as plain Exception
            raise DataError(f"{place}: the tokenizer cannot read the text: {error}") from error
        self._check_range(place, ids)
        return tuple(ids)

    def _check_ids(self, place: str, ids: tuple[int, ...], text: str) -> None:
        self._check_range(place, ids)
        plain = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        if text not in (plain, self._tokenizer.decode(list(ids))):
            raise DataError(
                f"{place}: the tokenizer does not match the stored ids: they decode to "
                f"{short(plain)}, the stored text is {short(text)}; analyse them with the model "
                "that wrote them, or leave the column of ids out"
            )

    def _check_range(self, place: str, ids: tuple[int, ...]) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self._size:
            wrong = next(i for i in ids if not 0 <= i < self._size)
            raise DataError(
                f"{place}: the tokenizer does not match the stored ids: {wrong} is none of the "
                f"model's {self._size} tokens"
            )

    def _check_length(self, place: str, length: int) -> None:
        if self._positions is not None and length > self._positions:
            raise DataError(
                f"{place}: prompt and completion have {length} tokens; the model reads at most "
                f"{self._positions}"
            )


def _key(entry: Entry) -> bytes:
    """Of the prompt: its id, or a hash of its text."""
    identity: Any = entry.prompt if entry.prompt_id is None else [entry.prompt_id]
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).digest()


def _same_filter(row: Row, first: Row) -> bool:
    """lm-eval writes every answer once per filter: those of the first filter are read."""
    return row.values.get("filter") == first.values.get("filter") or "resps" not in first.values
