"""Teacher forcing: what a model says of each token of completions that are there already.

One pass of the transformer's body over prompt and completion; then the language-model head and its
softmax, on the completions' rows alone and a chunk of rows at a time, so that the logits of a whole
micro-batch never exist at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from forkpoint.batching.split import longest_first
from forkpoint.entropy.logits import entropy_of_logprobs, log_probs
from forkpoint.errors import DataError, NumericalError
from forkpoint.policy.body import body_of
from forkpoint.policy.head import known_head
from forkpoint.policy.lengths import check_length

Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of a completion."""

LOGITS_ELEMENTS = 2**24
"""Logits held at once (64 MiB of float32)."""

CACHE_ELEMENTS = 2**19
"""Logits that softmax, entropy and top-k go through at a time: few enough to stay in the cache."""

LOOKAHEAD = 8
"""Micro-batches' worth of sequences that are sorted by length together, against padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCompletion:
    """What a model says of one completion. Made by ``score_completions``."""

    logprobs_T: np.ndarray
    """float32 [T] nats, of the tokens given, at the temperature."""
    entropies_T: np.ndarray
    """float32 [T] nats."""
    top_ids_TK: np.ndarray
    """int32 [T, K], the most likely token ids, descending."""
    top_logprobs_TK: np.ndarray
    """float32 [T, K] nats."""


def score_completions(
    model: Any, pairs: Iterable[Pair], *, temperature: float, top_k: int, max_tokens: int
) -> Iterator[ScoredCompletion]:
    """Score (prompt ids, completion ids) pairs, in order, in memory constant in their number.

    Args:
        model: a causal language model of transformers, in eval mode.
        temperature: logits are divided by it.
        top_k: K; less if the vocabulary is smaller.
        max_tokens: padded tokens of one forward pass; a longer sequence gets a pass of its own.
            Changes memory and speed, results only by rounding.

    Raises:
        DataError: a prompt without tokens, so that nothing predicts the first one.
        NumericalError: logits that are not finite.
    """
    teacher = _Teacher(model, temperature=temperature, top_k=top_k)
    pairs = iter(pairs)
    while window := list(_window(pairs, LOOKAHEAD * max_tokens)):
        scored = {i: teacher.nothing() for i, (_, ids) in enumerate(window) if not len(ids)}
        for indices in _micro_batches(window, max_tokens):
            scored |= zip(indices, teacher.score([window[i] for i in indices]), strict=True)
        yield from (scored[i] for i in range(len(window)))


class _Teacher:
    """One forward pass at a time."""

    def __init__(self, model: Any, *, temperature: float, top_k: int) -> None:
        self._model = model
        self._head = known_head(model)
        self._temperature = temperature
        self._vocabulary = model.get_input_embeddings().weight.shape[0]
        self._top_k = min(top_k, self._vocabulary)

    def nothing(self) -> ScoredCompletion:
        """Of a completion without tokens."""
        none, none_K = np.zeros(0, np.float32), np.zeros((0, self._top_k), np.float32)
        return _scored(none, none, none_K.astype(np.int32), none_K)

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair]) -> list[ScoredCompletion]:
        """Score the pairs of one micro-batch; none of the completions is empty."""
        states_RX = self._states(pairs)
        token_ids_R = torch.tensor([i for _, ids in pairs for i in ids], device=states_RX.device)
        step = max(1, LOGITS_ELEMENTS // self._vocabulary)
        chunks = [
            self._chunk(*x)
            for x in zip(states_RX.split(step), token_ids_R.split(step), strict=True)
        ]
        streams = [torch.cat(stream).cpu().numpy() for stream in zip(*chunks, strict=True)]
        if not np.isfinite(streams[1]).all():
            raise NumericalError("the model gave logits that are not finite")
        ends = np.cumsum([len(ids) for _, ids in pairs])[:-1]
        return list(map(_scored, *(np.split(stream, ends) for stream in streams)))

    def _states(self, pairs: Sequence[Pair]) -> Tensor:
        """[R, D] what the head reads to predict each completion token (or its logits, [R, V]).

        Right padding needs no mask: under causal attention nothing sees what is on its right.
        """
        rows = [[*prompt, *ids[:-1]] for prompt, ids in pairs]  # the last token predicts nothing
        ids_BL = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
        for line, row in enumerate(rows):
            ids_BL[line, : len(row)] = torch.tensor(row)
        check_length(self._model, ids_BL.shape[1])
        body = self._model if self._head is None else body_of(self._model)
        output = body(input_ids=ids_BL.to(self._model.device), use_cache=False)
        states_BLX = output.logits if self._head is None else output.last_hidden_state
        pieces = [
            states_BLX[line, len(prompt) - 1 : len(prompt) - 1 + len(ids)]
            for line, (prompt, ids) in enumerate(pairs)
        ]
        return torch.cat(pieces)

    def _chunk(self, states_RX: Tensor, token_ids_R: Tensor) -> tuple[Tensor, ...]:
        """The four streams of some rows, whose logits are held."""
        logits_RV = states_RX if self._head is None else self._head.logits(states_RX)
        step = max(1, CACHE_ELEMENTS // self._vocabulary)
        parts = [
            self._statistics(*x)
            for x in zip(logits_RV.split(step), token_ids_R.split(step), strict=True)
        ]
        return tuple(torch.cat(stream) for stream in zip(*parts, strict=True))

    def _statistics(self, logits_RV: Tensor, token_ids_R: Tensor) -> tuple[Tensor, ...]:
        """ln p of the tokens, H, and the most likely ids with their ln p."""
        logp_RV = log_probs(logits_RV, self._temperature)
        top = logp_RV.topk(self._top_k, dim=-1)
        logprobs_R = logp_RV.gather(-1, token_ids_R[:, None])[:, 0]
        return logprobs_R, entropy_of_logprobs(logp_RV), top.indices.int(), top.values


def _scored(
    logprobs_T: np.ndarray,
    entropies_T: np.ndarray,
    top_ids_TK: np.ndarray,
    top_logprobs_TK: np.ndarray,
) -> ScoredCompletion:
    return ScoredCompletion(
        logprobs_T=logprobs_T,
        entropies_T=entropies_T,
        top_ids_TK=top_ids_TK,
        top_logprobs_TK=top_logprobs_TK,
    )


def _window(pairs: Iterator[Pair], max_tokens: int) -> Iterator[Pair]:
    """The next pairs, up to the one that reaches ``max_tokens``."""
    taken = 0
    for prompt, completion in pairs:
        if not len(prompt):
            raise DataError("a prompt without tokens: nothing predicts the completion's first one")
        yield prompt, completion
        taken += len(prompt) + len(completion)
        if taken >= max_tokens:
            return


def _micro_batches(window: Sequence[Pair], max_tokens: int) -> list[list[int]]:
    """Indices of non-empty completions, similar lengths together, padded to ``max_tokens``."""
    lengths = {i: len(prompt) + len(ids) - 1 for i, (prompt, ids) in enumerate(window) if len(ids)}
    return longest_first(lengths, max_tokens)
