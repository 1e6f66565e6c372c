"""Teacher forcing: what a model says of each token of completions that are there already.

One pass of the transformer's body over prompt and completion; then the language-model head and its
softmax, on the completions' rows alone and a chunk of rows at a time, so that the logits of a whole
micro-batch never exist at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from forkpoint.batching.batch import longest_first
from forkpoint.entropy.logits import entropy_of_logprobs, log_probs
from forkpoint.errors import DataError, NumericalError
from forkpoint.policy.body import body_of, check_length
from forkpoint.policy.head import known_head
from forkpoint.types import Completion

Pair: TypeAlias = tuple[Sequence[int], Completion]
"""The token ids of a prompt, and a completion of it."""

STREAMS = ("logprobs", "entropies", "top_ids", "top_logprobs")
"""What is scored, as fields of ``Completion``."""

LOGITS_ELEMENTS = 2**24
"""Logits held at once (64 MiB of float32)."""

CACHE_ELEMENTS = 2**19
"""Logits that softmax, entropy and top-k go through at a time: few enough to stay in the cache."""

LOOKAHEAD = 8
"""Micro-batches' worth of sequences that are sorted by length together, against padding."""


def score_completions(
    model: Any, pairs: Iterable[Pair], *, temperature: float, top_k: int, max_tokens: int
) -> Iterator[Completion]:
    """The completions with what the model says of each token, in order, in constant memory.

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
        scored = {i: teacher.nothing(c) for i, (_, c) in enumerate(window) if not len(c)}
        lengths = {i: len(prompt) + len(c) - 1 for i, (prompt, c) in enumerate(window) if len(c)}
        for indices in longest_first(lengths, max_tokens):
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

    def nothing(self, completion: Completion) -> Completion:
        """A completion without tokens."""
        none, none_K = np.zeros(0), np.zeros((0, self._top_k))
        return _scored(completion, none, none, none_K, none_K)

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair]) -> list[Completion]:
        """Score the pairs of one micro-batch; none of the completions is empty."""
        states_RX = self._states(pairs)
        token_ids_R = torch.tensor(
            np.concatenate([c.token_ids for _, c in pairs]), device=states_RX.device
        )
        step = max(1, LOGITS_ELEMENTS // self._vocabulary)
        streams = [x.cpu().numpy() for x in _by_rows(self._chunk, step, states_RX, token_ids_R)]
        if not np.isfinite(streams[1]).all():
            raise NumericalError("the model gave logits that are not finite")
        completions = [completion for _, completion in pairs]
        ends = np.cumsum(list(map(len, completions)))[:-1]
        return list(map(_scored, completions, *(np.split(stream, ends) for stream in streams)))

    def _states(self, pairs: Sequence[Pair]) -> Tensor:
        """[R, D] what the head reads to predict each completion token (or its logits, [R, V]).

        Right padding needs no mask: under causal attention nothing sees what is on its right.
        """
        # the last token predicts nothing
        rows = [torch.tensor([*prompt, *c.token_ids[:-1].tolist()]) for prompt, c in pairs]
        ids_BL = pad_sequence(rows, batch_first=True)
        check_length(self._model, ids_BL.shape[1])
        body = self._model if self._head is None else body_of(self._model)
        output = body(input_ids=ids_BL.to(self._model.device), use_cache=False)
        states_BLX = output.logits if self._head is None else output.last_hidden_state
        pieces = [
            states_BLX[line, len(prompt) - 1 : len(prompt) - 1 + len(completion)]
            for line, (prompt, completion) in enumerate(pairs)
        ]
        return torch.cat(pieces)

    def _chunk(self, states_RX: Tensor, token_ids_R: Tensor) -> tuple[Tensor, ...]:
        """The four streams of some rows, whose logits are held."""
        logits_RV = states_RX if self._head is None else self._head.logits(states_RX)
        step = max(1, CACHE_ELEMENTS // self._vocabulary)
        return _by_rows(self._statistics, step, logits_RV, token_ids_R)

    def _statistics(self, logits_RV: Tensor, token_ids_R: Tensor) -> tuple[Tensor, ...]:
        """ln p of the tokens, H, and the most likely ids with their ln p."""
        logp_RV = log_probs(logits_RV, self._temperature)
        top = logp_RV.topk(self._top_k, dim=-1)
        logprobs_R = logp_RV.gather(-1, token_ids_R[:, None])[:, 0]
        return logprobs_R, entropy_of_logprobs(logp_RV), top.indices.int(), top.values


def _by_rows(
    streams_of: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    step: int,
    rows_RX: Tensor,
    ids_R: Tensor,
) -> tuple[Tensor, ...]:
    """The streams of all rows, computed ``step`` rows at a time."""
    parts = map(streams_of, rows_RX.split(step), ids_R.split(step))
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def _scored(completion: Completion, *streams: np.ndarray) -> Completion:
    """With streams that are aligned with its tokens, in the order of ``STREAMS``."""
    return replace(completion, energies=None, **dict(zip(STREAMS, streams, strict=True)))


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
