"""The in-process engine: samples from the very model that is trained.

Each prompt is read once for all of its samples; then all rows grow side by side, a token a pass,
and a finished row leaves the batch. Log-probability and entropy of a token are computed from the
same logits the token was drawn from: no later pass can get them wrong, and none is needed.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from forkpoint.entropy.logits import entropy_of_logprobs, log_probs
from forkpoint.errors import Interrupted, NumericalError
from forkpoint.policy.load import LoadedModel
from forkpoint.randomness import stream
from forkpoint.rollouts.base import SampleRequest, SamplingSettings
from forkpoint.rollouts.decoding import growing_cache, shared_heads
from forkpoint.rollouts.draw import draw_tokens
from forkpoint.rollouts.key_keeper import KeyKeeper
from forkpoint.rollouts.tempering import split_logprobs
from forkpoint.types import Completion, FinishReason

CHUNK_ELEMENTS = {"cpu": 2**19, "other": 2**26}
"""Logits that softmax, entropy and draw go through at a time: on a CPU they stay in its cache."""

_Drawn: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Of some rows, one position each: token ids, their ln p, and H."""


class TransformersEngine:
    """Samples with ``transformers`` and a key-value cache."""

    captures_entropy = True
    same_weights = True
    splits_temperatures = True

    def __init__(
        self, loaded: LoadedModel, *, batch_sequences: int, keeper: KeyKeeper | None = None
    ) -> None:
        """
        Args:
            batch_sequences: most rows side by side; bounds the cache's memory.
            keeper: gets the keys and values of what is sampled to train on.
        """
        self._loaded = loaded
        self.keeper = keeper
        self._batch_sequences = batch_sequences

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        """See ``Engine.sample``."""
        completions = []
        for start in range(0, len(requests), self._batch_sequences):
            part = requests[start : start + self._batch_sequences]
            with shared_heads(self._loaded.model):
                completions += self._sample_batch(part, settings, should_stop)
        return completions

    def close(self) -> None:
        """Nothing to release: the model is the trainer's."""

    def _sample_batch(
        self,
        requests: Sequence[SampleRequest],
        settings: SamplingSettings,
        should_stop: Callable[[], bool],
    ) -> list[Completion]:
        uniforms_BL = _uniforms(requests, settings)
        logits_BV, cache, mask_BL = self._read_prompts(requests)
        prompt_width = mask_BL.shape[1]
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
                self.keeper.keep(gone, leaving, cache, prompt_width)
            if not going_B.any():
                break
            if not going_B.all():
                alive_B, tokens_B = alive_B[going_B], tokens_B[going_B]
                kept_B = going_B.nonzero().flatten().to(mask_BL.device)
                cache.batch_select_indices(kept_B)
                mask_BL = mask_BL[kept_B]
            logits_BV, mask_BL = self._next_logits(tokens_B, cache, mask_BL)
        return [self._completion(*row) for row in _rows(steps, len(requests))]

    def _read_prompts(self, requests: Sequence[SampleRequest]) -> tuple[Tensor, Any, Tensor]:
        """Logits after each request's prompt, the cache and its mask; prompts read once each."""
        prompts = list(dict.fromkeys(r.prompt.token_ids for r in requests))
        width = max(map(len, prompts))
        ids_PL = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask_PL = torch.zeros_like(ids_PL)
        for line, prompt in enumerate(prompts):  # left padding: all rows grow at the right edge
            ids_PL[line, width - len(prompt) :] = torch.tensor(prompt)
            mask_PL[line, width - len(prompt) :] = 1
        device = self._loaded.model.device
        cache, mask_PL = growing_cache(), mask_PL.to(device)
        output = self._loaded.model(
            input_ids=ids_PL.to(device),
            attention_mask=mask_PL,
            position_ids=(mask_PL.cumsum(-1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        index = {prompt: line for line, prompt in enumerate(prompts)}
        lines_B = torch.tensor([index[r.prompt.token_ids] for r in requests], device=device)
        cache.batch_select_indices(lines_B)
        return output.logits[:, -1][lines_B], cache, mask_PL[lines_B]

    def _next_logits(self, tokens_B: Tensor, cache: Any, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), 1)], dim=1)
        output = self._loaded.model(
            input_ids=tokens_B.to(mask_BL.device)[:, None],
            attention_mask=mask_BL,
            position_ids=mask_BL.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], mask_BL

    def _completion(
        self, token_ids: list[int], logprobs: list[float], entropies: list[float]
    ) -> Completion:
        stopped = token_ids[-1] in self._loaded.eos_ids
        return Completion(
            token_ids=tuple(token_ids),
            logprobs=tuple(logprobs),
            entropies=tuple(entropies),
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
) -> list[tuple[list[int], list[float], list[float]]]:
    """What was drawn, step by step, as the tokens, ln p and H of each of ``count`` rows."""
    row_T = torch.cat([alive_B for alive_B, _ in steps])
    order_T = row_T.argsort(stable=True)
    lengths = row_T.bincount(minlength=count).tolist()
    streams = zip(*(drawn for _, drawn in steps), strict=True)
    cut = [torch.cat(stream).cpu()[order_T].split(lengths) for stream in streams]
    return [tuple(piece.tolist() for piece in row) for row in zip(*cut, strict=True)]
