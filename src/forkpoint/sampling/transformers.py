"""The in-process engine: samples from the very model that is trained.

Each prompt is read once for all of its samples; then all rows grow side by side, a token a pass,
and a finished row leaves the batch. Log-probability and entropy of a token are computed from the
same logits the token was drawn from: no later pass can get them wrong, and none is needed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from forkpoint.entropy.logits import entropy_of_logprobs, log_probs
from forkpoint.errors import Interrupted, NumericalError
from forkpoint.policy.body import check_length
from forkpoint.policy.load import LoadedModel
from forkpoint.randomness import stream
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.draw import draw_tokens
from forkpoint.sampling.key_keeper import KeyKeeper
from forkpoint.sampling.rows import Decoding, Rows
from forkpoint.sampling.tempering import split_logprobs
from forkpoint.types import Completion, FinishReason

CHUNK_ELEMENTS = {"cpu": 2**19, "other": 2**26}
"""Logits that softmax, entropy and draw go through at a time: on a CPU they stay in its cache."""

_Drawn: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Of some rows, one position each: token ids, their ln p, and H."""


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
    ) -> None:
        """
        Args:
            decoding: how this model is run, from ``settle_decoding``.
            batch_sequences: most rows side by side; bounds the cache's memory.
        """
        self._loaded = loaded
        self._decoding = decoding
        self.keeper: KeyKeeper | None = None
        """Gets the keys and values of what is sampled to train on."""
        self._batch_sequences = batch_sequences

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See ``Engine.sample``."""
        longest = max((len(r.prompt.token_ids) for r in requests), default=0)
        check_length(self._loaded.model, longest + settings.max_new_tokens)
        completions: dict[int, Completion] = {}
        for part in self._batches(requests):
            with self._decoding.attention(self._loaded.model):
                made = self._sample_batch([requests[i] for i in part], settings, should_stop)
            completions |= zip(part, made, strict=True)
        return [completions[i] for i in range(len(requests))]

    def close(self) -> None:
        """Nothing to release: the model is the trainer's."""

    def _batches(self, requests: Sequence[SampleRequest]) -> Iterator[list[int]]:
        """Indices of the requests that are sampled side by side, in order; prompts of one length
        only, for a model whose prompts cannot be padded."""
        groups: defaultdict[int, list[int]] = defaultdict(list)
        for index, request in enumerate(requests):
            groups[0 if self._decoding.pads else len(request.prompt.token_ids)].append(index)
        for group in groups.values():
            for start in range(0, len(group), self._batch_sequences):
                yield group[start : start + self._batch_sequences]

    def _sample_batch(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool],
    ) -> list[Completion]:
        uniforms_BL = _uniforms(requests, settings)
        rows = Rows(self._loaded.model, self._decoding)
        logits_BV = rows.read([r.prompt.token_ids for r in requests])
        prompt_width = rows.mask_BL.shape[1]
        alive_B = torch.arange(len(requests))
        eos_ids = torch.tensor(self._loaded.eos_ids)
        steps: list[tuple[Tensor, _Drawn]] = []
        for position in range(settings.max_new_tokens):
            if should_stop():
                raise Interrupted("stopped while sampling")
            drawn = _draw(logits_BV, uniforms_BL[alive_B, position], settings)
            steps.append((alive_B, drawn))
            tokens_B = drawn[0].cpu()
            going_B = ~torch.isin(tokens_B, eos_ids)
            if position + 1 == settings.max_new_tokens:
                going_B = torch.zeros_like(going_B)
            if self.keeper is not None and settings.purpose == "sample":
                leaving = (~going_B).nonzero().flatten().tolist()
                gone = [requests[i] for i in alive_B[~going_B].tolist()]
                self.keeper.keep(settings.step, gone, leaving, rows.cache, prompt_width)
            if not going_B.any():
                break
            if not going_B.all():
                alive_B, tokens_B = alive_B[going_B], tokens_B[going_B]
                rows.keep(going_B.nonzero().flatten())
            logits_BV = rows.step(tokens_B)
        return [self._completion(*row) for row in _rows(steps, len(requests))]

    def _completion(
        self, token_ids: np.ndarray, logprobs: np.ndarray, entropies: np.ndarray
    ) -> Completion:
        stopped = token_ids[-1] in self._loaded.eos_ids
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            entropies=entropies,
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            text=self._loaded.tokenizer.decode(token_ids, skip_special_tokens=True),
        )


def _uniforms(requests: Sequence[SampleRequest], settings: SamplingSettings) -> Tensor:
    """float64 [B, max_new_tokens]: each request's own stream of draws."""
    draws = [
        stream(settings.seed, settings.purpose, settings.step, r.serial, r.sample).random(
            settings.max_new_tokens
        )
        for r in requests
    ]
    return torch.from_numpy(np.stack(draws))


def _draw(logits_BV: Tensor, uniforms_B: Tensor, settings: SamplingSettings) -> _Drawn:
    """One token per row, as many rows at a time as ``CHUNK_ELEMENTS`` allows."""
    device = logits_BV.device
    elements = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["other"])
    size = max(1, elements // logits_BV.shape[1])
    parts = zip(logits_BV.split(size), uniforms_B.to(device).split(size), strict=True)
    drawn = [_draw_rows(*part, settings) for part in parts]
    tokens_B, logprobs_B, entropies_B = map(torch.cat, zip(*drawn, strict=True))
    return tokens_B, logprobs_B, entropies_B


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
    return tokens_R, logp_RV.gather(1, tokens_R[:, None])[:, 0], entropies_R


def _rows(
    steps: Sequence[tuple[Tensor, _Drawn]], count: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What was drawn, step by step, as the tokens, ln p and H of each of ``count`` rows."""
    row_T = torch.cat([alive_B for alive_B, _ in steps])
    order_T = row_T.argsort(stable=True)
    lengths = row_T.bincount(minlength=count).tolist()
    streams = zip(*(drawn for _, drawn in steps), strict=True)
    cut = [torch.cat(stream).cpu()[order_T].split(lengths) for stream in streams]
    return [tuple(piece.numpy() for piece in row) for row in zip(*cut, strict=True)]
