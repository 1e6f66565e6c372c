"""The in-process engine: samples from the very model that is trained.

Each prompt is read once for all of its samples; then all rows grow side by side, a token a pass,
and a finished row leaves the batch. Log-probability and entropy of a token are computed from the
same logits the token was drawn from: no later pass can get them wrong, and none is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forkpoint.entropy.logits import entropy_of_logprobs
from forkpoint.errors import Interrupted, NumericalError
from forkpoint.policy.load import LoadedModel
from forkpoint.randomness import stream
from forkpoint.rollouts.base import SampleRequest, SamplingSettings
from forkpoint.rollouts.draw import draw_tokens
from forkpoint.types import Completion, FinishReason


@dataclass(slots=True)
class _Row:
    """A completion as it grows."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


class TransformersEngine:
    """Samples with ``transformers`` and a key-value cache."""

    captures_entropy = True
    same_weights = True

    def __init__(self, loaded: LoadedModel, *, batch_sequences: int) -> None:
        """
        Args:
            batch_sequences: most rows side by side; bounds the cache's memory.
        """
        self._loaded = loaded
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
        rows = [_Row() for _ in requests]
        uniforms_BL = _uniforms(requests, settings)
        logits_BV, cache, mask_BL = self._read_prompts(requests)
        alive_B = torch.arange(len(requests))
        for position in range(settings.max_new_tokens):
            if should_stop():
                raise Interrupted("stopped while sampling")
            tokens_B = _draw(logits_BV, uniforms_BL[alive_B, position], settings, rows, alive_B)
            going_B = ~torch.isin(tokens_B, torch.tensor(self._loaded.eos_ids))
            if position + 1 == settings.max_new_tokens or not going_B.any():
                break
            if not going_B.all():
                alive_B, tokens_B = alive_B[going_B], tokens_B[going_B]
                kept_B = going_B.nonzero().flatten().to(mask_BL.device)
                cache.batch_select_indices(kept_B)
                mask_BL = mask_BL[kept_B]
            logits_BV, mask_BL = self._next_logits(tokens_B, cache, mask_BL)
        return [self._completion(row) for row in rows]

    def _read_prompts(self, requests: Sequence[SampleRequest]) -> tuple[Tensor, Any, Tensor]:
        """Logits after each request's prompt, the cache and its mask; prompts read once each."""
        from transformers import DynamicCache

        prompts = list(dict.fromkeys(r.prompt.token_ids for r in requests))
        width = max(map(len, prompts))
        ids_PL = torch.zeros(len(prompts), width, dtype=torch.int64)
        mask_PL = torch.zeros_like(ids_PL)
        for line, prompt in enumerate(prompts):  # left padding: all rows grow at the right edge
            ids_PL[line, width - len(prompt) :] = torch.tensor(prompt)
            mask_PL[line, width - len(prompt) :] = 1
        device = self._loaded.model.device
        cache, mask_PL = DynamicCache(), mask_PL.to(device)
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

    def _completion(self, row: _Row) -> Completion:
        stopped = row.token_ids[-1] in self._loaded.eos_ids
        return Completion(
            token_ids=tuple(row.token_ids),
            logprobs=tuple(row.logprobs),
            entropies=tuple(row.entropies),
            finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            text=self._loaded.tokenizer.decode(row.token_ids, skip_special_tokens=True),
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


def _draw(
    logits_BV: Tensor,
    uniforms_B: Tensor,
    settings: SamplingSettings,
    rows: list[_Row],
    alive_B: Tensor,
) -> Tensor:
    """Draw one token per living row and note it down: int64 [B] on the CPU."""
    logp_BV = (logits_BV.float() / settings.temperature).log_softmax(-1)
    entropies_B = entropy_of_logprobs(logp_BV)
    if not entropies_B.isfinite().all():
        raise NumericalError("the model gave logits that are not finite while sampling")
    tokens_B = draw_tokens(logp_BV.exp(), uniforms_B.to(logp_BV.device))
    logprobs_B = logp_BV.gather(1, tokens_B[:, None])[:, 0]
    columns = (alive_B, tokens_B, logprobs_B, entropies_B)
    for index, token, logprob, entropy in zip(*(c.tolist() for c in columns), strict=True):
        rows[index].token_ids.append(token)
        rows[index].logprobs.append(logprob)
        rows[index].entropies.append(entropy)
    return tokens_B.cpu()
