"""Stage a: are the numbers on this device what they are said to be?

In float32 the claims have bounds. In bfloat16 differences are reported: nothing exact is there to
be equal to, so gradients are also compared with the float32 one of the same weights.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import selected
from benchmarks.gpu.device import Device
from benchmarks.gpu.lines import Lines, Skip
from benchmarks.gpu.models import (
    SMALL,
    TINY,
    Built,
    Setup,
    as_sampled,
    build,
    lab_requests,
    random_groups,
)
from benchmarks.workloads import records
from forkpoint.batching import build_batch
from forkpoint.losses import batch_loss
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy.precision import unsharded, whole
from forkpoint.sampling.base import SamplingSettings
from forkpoint.sampling.rows import PLAIN
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.training.checkpoint import (
    RunState,
    latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from forkpoint.training.step import train_step
from forkpoint.types import Group, Rollout, Score, TokenBatch

DTYPES = ("float32", "bfloat16")


def numerics(lines: Lines, device: Device) -> None:
    """Every check, the most telling first."""
    checks = Checks(device)
    for dtype in DTYPES:
        for on in (False, True):
            name = f"sparse = dense gradient, {dtype}, checkpointing {'on' if on else 'off'}"
            lines.measure(name, lambda dtype=dtype, on=on: checks.gradients(dtype, on))
    for dtype in DTYPES:
        lines.measure(f"engine = teacher-forced, {dtype}", lambda d=dtype: checks.engine(d))
        lines.measure(f"update at lr 1e-6, {dtype}", lambda d=dtype: checks.small_update(d))
        lines.measure(f"resume, {dtype}", lambda d=dtype: checks.resume(d))
        lines.measure(f"local = dense values, {dtype}", lambda d=dtype: checks.local(d))
    for dtype in DTYPES:
        lines.measure(f"flex = dense mask, {dtype}", lambda d=dtype: checks.flex(d))


class Checks:
    """Each returns what it found and the bounds of it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._shape = TINY if device.tiny else SMALL
        self._sizes = (3, 17, 9, 24) if device.tiny else (40, 300, 150, 511, 260, 33, 400, 120)

    def gradients(self, dtype: str, checkpointing: bool) -> dict[str, Any]:
        """Sparse against dense in the same number format, and both against dense in float32."""
        batch = self._batch()
        exact = gradient(self._built(gradient="dense"), batch)
        kind = {"compute_dtype": dtype, "checkpointing": checkpointing}
        dense = gradient(self._built(gradient="dense", **kind), batch)
        sparse = gradient(self._built(gradient="sparse", **kind), batch)
        found = {
            "relative_error": distance(sparse, dense),
            "dense_from_float32": distance(dense, exact),
            "sparse_from_float32": distance(sparse, exact),
        }
        return _bounded(found, dtype, relative_error=1e-5, sparse_from_float32=1e-5)

    def local(self, dtype: str) -> dict[str, Any]:
        """Local's log-probabilities and entropies are exact; its gradient's cosine is reported."""
        batch = self._batch()
        stats, flats = [], []
        for way in ("dense", "local"):
            built = self._built(gradient=way, compute_dtype=dtype)
            needed_T = needed_rows(batch, built.config.loss)
            found = built.policy(batch, needed_T)
            chosen = torch.isin(found.rows_R, needed_T.nonzero().flatten())
            stats.append(torch.stack([found.logprobs_R, found.entropies_R])[:, chosen].detach())
            flats.append(gradient(built, batch))
        cosine = torch.nn.functional.cosine_similarity(*flats, dim=0)
        found = {"largest_nats": _largest(*stats), "gradient_cosine": float(cosine)}
        return _bounded(found, dtype, largest_nats=1e-4)

    def flex(self, dtype: str) -> dict[str, Any]:
        """The trees' block mask against the dense one."""
        if not self._device.is_cuda:
            raise Skip("FlexAttention has no backward pass on a CPU, and takes long to compile")
        batch = self._batch()
        builts = [
            self._built(compute_dtype=dtype, attention=attention)
            for attention in ("sdpa", "flex_attention")
        ]
        logprobs = [built.policy.annotate(batch, max_tokens=4096).logprobs_R for built in builts]
        flats = [gradient(built, batch) for built in builts]
        found = {"largest_nats": _largest(*logprobs), "gradient_error": distance(*flats)}
        return _bounded(found, dtype, largest_nats=1e-4, gradient_error=1e-4)

    def engine(self, dtype: str) -> dict[str, Any]:
        """What was noted while sampling against a pass over the finished completions."""
        built = build(Setup(shape=None, device=self._device.name, compute_dtype=dtype))
        batch = self._lab_batch(built)
        stats = built.policy.annotate(batch, max_tokens=4096)
        assert batch.rollout_entropies_T is not None
        logprobs_T = (stats.logprobs_R - batch.rollout_logprobs_T).abs()
        entropies_T = (stats.entropies_R - batch.rollout_entropies_T).abs()
        found = {
            "tokens": batch.num_tokens,
            "largest_logprob_nats": float(logprobs_T.max()),
            "mean_logprob_nats": float(logprobs_T.mean()),
            "largest_entropy_nats": float(entropies_T.max()),
            "mean_entropy_nats": float(entropies_T.mean()),
        }
        return _bounded(found, dtype, largest_logprob_nats=1e-3, largest_entropy_nats=1e-3)

    def small_update(self, dtype: str) -> dict[str, Any]:
        """The share of weights that one update at learning rate 1e-6 leaves as they were."""
        setup = Setup(shape=None, device=self._device.name, compute_dtype=dtype, lr=1e-6)
        built = build(setup)
        batch = self._lab_batch(built)
        before = weights(built)
        fault = _step(built, batch, 0)
        found = {"unchanged_share": float((weights(built) == before).double().mean())}
        return found | {"fault": fault, "bounds": {"unchanged_share": 0.1}}

    def resume(self, dtype: str) -> dict[str, Any]:
        """A third step after a checkpoint against one without it."""
        setup = Setup(shape=None, device=self._device.name, compute_dtype=dtype, lr=1e-4)
        built = build(setup)
        batch = self._lab_batch(built)
        for step in range(2):
            _step(built, batch, step)
        before = weights(built)
        state = RunState(step=2, updates=built.optimizer.updates)
        with tempfile.TemporaryDirectory() as folder:
            model, tokenizer = built.loaded.model, built.loaded.tokenizer
            save_checkpoint(Path(folder), state, model, tokenizer, built.optimizer, 1)
            saved, _ = latest_checkpoint(Path(folder))
            assert saved is not None
            again = build(replace(setup, weights=saved.path))
            restore_optimizer(saved, again.optimizer)
        moments = {
            tensor.device.type
            for name, tensor in again.optimizer.state_tensors().items()
            if not name.startswith("step/")  # a counter, which may stay on the CPU
        }
        faults = [_step(one, batch, 2) for one in (built, again)]
        through, resumed = weights(built), weights(again)
        moved = float((through - before).norm())
        found = {
            "moments_on": ", ".join(sorted(moments)),
            "moments_elsewhere": len(moments - {self._device.name}),
            "relative_error": float((resumed - through).norm()) / moved if moved else 0.0,
            "fault": faults[0] or faults[1],
        }
        return found | {"bounds": {"moments_elsewhere": 0, "relative_error": 1e-3}}

    def _built(self, **kind: Any) -> Built:
        return build(Setup(shape=self._shape, device=self._device.name, **kind))

    def _batch(self) -> TokenBatch:
        """Random completions with their forks selected, by the float32 model's entropies."""
        groups = random_groups(self._shape, prompts=2, prompt_tokens=12, lengths=self._sizes)
        built = self._built(gradient="dense")
        batch = build_batch(records(groups), advantage="grpo")
        return selected(as_sampled(built.policy, batch, 4096), built.config)

    def _lab_batch(self, built: Built) -> TokenBatch:
        """Completions of the laboratory's policy; every second one of a prompt is rewarded."""
        prompts, samples = (2, 4) if self._device.tiny else (8, 8)
        requests = lab_requests(built.loaded.tokenizer, prompts=prompts, samples=samples)
        engine = TransformersEngine(built.loaded, decoding=PLAIN, batch_sequences=len(requests))
        settings = SamplingSettings(
            max_new_tokens=24 if self._device.tiny else 160, temperature=1.0, seed=0, step=0
        )
        with unsharded(built.policy):
            completions = engine.sample(requests, settings)
        rollouts = [
            Rollout(completion=completion, score=Score(reward=float(request.sample % 2)))
            for request, completion in zip(requests, completions, strict=True)
        ]
        groups = [
            Group(
                prompt=requests[first].prompt,
                serial=requests[first].serial,
                rollouts_G=tuple(rollouts[first : first + samples]),
            )
            for first in range(0, len(requests), samples)
        ]
        return build_batch(groups, advantage="grpo")


def gradient(built: Built, batch: TokenBatch) -> Tensor:
    """The policy gradient of a batch whose coefficients are set: float64, all parameters in one."""
    loss = built.config.loss
    needed_T = needed_rows(batch, loss)
    for sequences in built.policy.passes(batch, needed_T, max_tokens=1024):
        micro = batch.take(sequences)
        stats = built.policy(micro, needed_T[batch.rows_of(sequences)])
        batch_loss(micro, stats, loss).loss.backward()
    gradients = [p.grad for p in built.policy.parameters() if p.grad is not None]
    flat = torch.cat([whole(g).flatten().double() for g in gradients])
    built.optimizer.zero_grad()
    return flat


def weights(built: Built) -> Tensor:
    """All parameters in one, a copy: float64."""
    return torch.cat([whole(p.detach()).flatten().double() for p in built.policy.parameters()])


def distance(found: Tensor, exact: Tensor) -> float:
    """The norm of the difference over that of ``exact``."""
    return float((found - exact).norm() / exact.norm())


def _step(built: Built, batch: TokenBatch, step: int) -> str | None:
    """One step of training on the batch; why it was skipped, if it was."""
    result = train_step(
        built.policy, built.optimizer, batch, built.config, step=step, same_weights=True
    )
    return result.fault


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _bounded(found: dict[str, Any], dtype: str, **bounds: float) -> dict[str, Any]:
    """With bounds in float32; bfloat16 is reported without."""
    return found | ({"bounds": bounds} if dtype == "float32" else {})
