"""The in-process engine: samples from the very model that is trained.

Samples that begin together read their prompt once; then all rows grow side by side, a token a
pass. A finished row leaves the batch, and requests that wait take the places that become free.
Log-probability and entropy of a token are computed from the same logits the token was drawn from:
no later pass can get them wrong, and none is needed.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from forkpoint.entropy.logits import energy_of_probs, entropy_of_logprobs, log_probs
from forkpoint.errors import ConfigError, Interrupted, NumericalError
from forkpoint.policy.body import check_length
from forkpoint.policy.load import LoadedModel
from forkpoint.randomness import stream
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.draw import draw_tokens
from forkpoint.sampling.key_keeper import KeyKeeper
from forkpoint.sampling.rows import Decoding, Rows, row_bytes
from forkpoint.sampling.tempering import split_logprobs
from forkpoint.types import Completion, FinishReason

CHUNK_ELEMENTS = {"cpu": 2**19, "other": 2**26}
"""Logits that softmax, entropy and draw go through at a time: on a CPU they stay in its cache."""

FREE_SHARE = 1 / 8
"""Of all places, how many are free before requests that wait begin: to join rows to a running batch
copies its cache once."""

_Drawn: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of some rows, one position each: token ids, their ln p, H, and E."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alive:
    """The completions that are being sampled, as they stand in the batch."""

    index_B: Tensor
    """int64, of each one's request."""
    drawn_B: Tensor
    """int64, tokens so far."""
    uniforms_BM: Tensor
    """float64, each request's own stream of draws, a number for each token it may get."""

    def take(self, which_B: Tensor) -> "_Alive":
        """Those that a bool mask names."""
        return _Alive(**{name: getattr(self, name)[which_B] for name in self.__slots__})

    def and_also(self, others: "_Alive") -> "_Alive":
        """These, and others below them."""
        pairs = {name: (getattr(self, name), getattr(others, name)) for name in self.__slots__}
        return _Alive(**{name: torch.cat(pair) for name, pair in pairs.items()})


class TransformersEngine:
    """Samples with ``transformers`` and a cache."""

    captures_entropy = True
    same_weights = True
    splits_temperatures = True

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        decoding: Decoding,
        batch_sequences: int,
        cache_gb: float | None = None,
    ) -> None:
        """
        Args:
            decoding: how this model is run, from ``settle_decoding``.
            batch_sequences: most rows side by side.
            cache_gb: 10^9 bytes that their keys and values may take, if that is bounded; one
                layer more while its rows are copied.
        """
        self._loaded = loaded
        self._decoding = decoding
        self.keeper: KeyKeeper | None = None
        """Gets the keys and values of what is sampled to train on."""
        self._batch_sequences = batch_sequences
        self._cache_gb = cache_gb

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See ``Engine.sample``.

        Raises:
            ConfigError: ``cache_gb`` has no room for a single row.
        """
        if not requests:
            return []
        longest = max(len(r.prompt.token_ids) for r in requests) + settings.max_new_tokens
        check_length(self._loaded.model, longest)
        steps: list[tuple[Tensor, _Drawn]] = []
        with self._decoding.attention(self._loaded.model):
            places = self._places(longest)
            for waiting in self._groups(requests):
                steps += self._sample_group(requests, waiting, settings, places, should_stop)
        return [self._completion(*row) for row in _rows(steps, len(requests))]

    def close(self) -> None:
        """Nothing to release: the model is the trainer's."""

    def _groups(self, requests: Sequence[SampleRequest]) -> list[deque[int]]:
        """Indices of the requests that may be side by side, in order: all of them, or prompts of
        one length, for a model whose prompts cannot be padded."""
        groups: defaultdict[int, deque[int]] = defaultdict(deque)
        for index, request in enumerate(requests):
            groups[0 if self._decoding.pads else len(request.prompt.token_ids)].append(index)
        return list(groups.values())

    def _places(self, longest: int) -> int:
        """The most rows side by side: as many as the cache holds if each becomes as long as the
        longest can. No row is ever taken back, so the bound holds however long they turn out."""
        if self._cache_gb is None:
            return self._batch_sequences
        fixed, each = row_bytes(self._loaded.model, self._decoding)
        gb = (fixed + each * longest) / 1e9
        if gb > self._cache_gb:
            raise ConfigError(
                f"rollout.cache_gb = {self._cache_gb:g} has no room for one sequence of {longest} "
                f"tokens, prompt and rollout.max_new_tokens, which takes {gb:.3g}"
            )
        return min(self._batch_sequences, int(self._cache_gb / gb))

    def _beginning(self, running: int, waiting: int, places: int) -> int:
        """How many of the requests that wait begin now."""
        room = min(places - running, waiting)
        if running == 0:
            return room
        worth_it = room == waiting or room >= FREE_SHARE * places
        return room if self._decoding.joins and worth_it else 0

    def _sample_group(
        self,
        requests: Sequence[SampleRequest],
        waiting: deque[int],
        settings: SamplingSettings,
        places: int,
        should_stop: Callable[[], bool],
    ) -> Iterator[tuple[Tensor, _Drawn]]:
        """Of each pass the requests that got a token, int64 [B], and the tokens."""
        eos_ids = torch.tensor(self._loaded.eos_ids)
        rows, alive, logits_BV = self._no_rows(), _begin([], requests, settings), torch.empty(0)
        while waiting or len(alive.index_B):
            running = len(alive.index_B)
            if count := self._beginning(running, len(waiting), places):
                new = [waiting.popleft() for _ in range(count)]
                prompts = [requests[i].prompt.token_ids for i in new]
                logits = rows.admit(prompts) if running else rows.read(prompts)
                logits_BV = torch.cat([logits_BV, logits]) if running else logits
                alive = alive.and_also(_begin(new, requests, settings))
            if should_stop():
                raise Interrupted("stopped while sampling")
            uniforms_B = alive.uniforms_BM.gather(1, alive.drawn_B[:, None])[:, 0]
            drawn = _draw(logits_BV, uniforms_B, settings)
            yield alive.index_B, drawn
            alive = replace(alive, drawn_B=alive.drawn_B + 1)
            tokens_B = drawn[0].cpu()
            going_B = ~torch.isin(tokens_B, eos_ids) & (alive.drawn_B < settings.max_new_tokens)
            if not going_B.all():
                if self.keeper is not None and settings.purpose == "sample":
                    self._keep_keys(requests, alive, ~going_B, rows, settings.step)
                alive, tokens_B = alive.take(going_B), tokens_B[going_B]
                if not len(tokens_B):
                    rows = self._no_rows()
                    continue
                rows.keep(going_B.nonzero().flatten())
            logits_BV = rows.step(tokens_B)

    def _no_rows(self) -> Rows:
        return Rows(self._loaded.model, self._decoding)

    def _keep_keys(
        self,
        requests: Sequence[SampleRequest],
        alive: _Alive,
        leaving_B: Tensor,
        rows: Rows,
        step: int,
    ) -> None:
        """Give the keeper what rows have in the cache: all but their last token."""
        assert self.keeper is not None
        gone = alive.take(leaving_B)
        self.keeper.keep(
            step,
            [requests[i] for i in gone.index_B.tolist()],
            leaving_B.nonzero().flatten().tolist(),
            (rows.width - gone.drawn_B + 1).tolist(),
            rows.cache,
        )

    def _completion(
        self,
        token_ids: np.ndarray,
        logprobs: np.ndarray,
        entropies: np.ndarray,
        energies: np.ndarray,
    ) -> Completion:
        stopped = token_ids[-1] in self._loaded.eos_ids
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            entropies=entropies,
            energies=energies,
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            text=self._loaded.tokenizer.decode(token_ids, skip_special_tokens=True),
        )


def _begin(
    indices: Sequence[int], requests: Sequence[SampleRequest], settings: SamplingSettings
) -> _Alive:
    """Some requests before their first token."""
    uniforms = np.empty((len(indices), settings.max_new_tokens))
    for line, request in enumerate(requests[i] for i in indices):
        name = (settings.purpose, settings.step, request.serial, request.sample)
        uniforms[line] = stream(settings.seed, *name).random(settings.max_new_tokens)
    return _Alive(
        index_B=torch.tensor(indices, dtype=torch.int64),
        drawn_B=torch.zeros(len(indices), dtype=torch.int64),
        uniforms_BM=torch.from_numpy(uniforms),
    )


def _draw(logits_BV: Tensor, uniforms_B: Tensor, settings: SamplingSettings) -> _Drawn:
    """One token per row, as many rows at a time as ``CHUNK_ELEMENTS`` allows."""
    device = logits_BV.device
    elements = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["other"])
    size = max(1, elements // logits_BV.shape[1])
    parts = zip(logits_BV.split(size), uniforms_B.to(device).split(size), strict=True)
    drawn = [_draw_rows(*part, settings) for part in parts]
    tokens_B, logprobs_B, entropies_B, energies_B = map(torch.cat, zip(*drawn, strict=True))
    return tokens_B, logprobs_B, entropies_B, energies_B


def _draw_rows(logits_RV: Tensor, uniforms_R: Tensor, settings: SamplingSettings) -> _Drawn:
    logp_RV = log_probs(logits_RV, settings.temperature)
    p_RV = logp_RV.exp()
    entropies_R = entropy_of_logprobs(logp_RV, p_RV)
    if not entropies_R.isfinite().all():
        raise NumericalError("the model gave logits that are not finite while sampling")
    if settings.split is not None:
        logp_RV = split_logprobs(logits_RV, entropies_R, settings.split)
        p_RV = logp_RV.exp()
    tokens_R = draw_tokens(p_RV, uniforms_R)
    logprobs_R = logp_RV.gather(1, tokens_R[:, None])[:, 0]
    return tokens_R, logprobs_R, entropies_R, energy_of_probs(p_RV, tokens_R)


def _rows(steps: Sequence[tuple[Tensor, _Drawn]], count: int) -> list[tuple[np.ndarray, ...]]:
    """What was drawn, step by step, as the tokens, ln p, H and E of each of ``count`` rows."""
    row_T = torch.cat([alive_B for alive_B, _ in steps])
    order_T = row_T.argsort(stable=True)
    lengths = row_T.bincount(minlength=count).tolist()
    streams = zip(*(drawn for _, drawn in steps), strict=True)
    cut = [torch.cat(stream).cpu()[order_T].split(lengths) for stream in streams]
    return [tuple(piece.numpy() for piece in row) for row in zip(*cut, strict=True)]
