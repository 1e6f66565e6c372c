"""Stage c: an optimizer step of a model of 1.7 billion parameters, ours and TRL's.

The model has random weights, the completions are random tokens of one length, half of each group is
rewarded. A pass holds one sequence, or one row of trees.
"""

import sys
from contextlib import redirect_stdout
from typing import Any

from benchmarks.gpu.device import Device
from benchmarks.gpu.lines import Lines, Skip
from benchmarks.gpu.models import (
    QWEN3_1_7B,
    TINY,
    Setup,
    Shape,
    as_sampled,
    build,
    qwen3,
    random_groups,
    word_tokenizer,
)
from benchmarks.workloads import SampledGroup, records
from forkpoint.batching import build_batch
from forkpoint.policy.live import LiveSet
from forkpoint.training.step import train_step
from forkpoint.types import TokenBatch

LENGTHS = (2048, 8192)
PROMPTS, SAMPLES, PROMPT_TOKENS = 2, 8, 128
RATE_SHARE = 0.2
"""Of the device's rate of matrix products: what the time of a measure is guessed by."""
BUILD_S, COMPILE_S, TRAINER_S = 10, 60, 30
"""What a model, FlexAttention and TRL's trainer may add on a CUDA device."""

WAYS: dict[str, dict[str, Any]] = {
    "sparse, checkpointing": {"gradient": "sparse", "checkpointing": True},
    "dense, checkpointing": {"gradient": "dense", "checkpointing": True},
    "dense": {"gradient": "dense"},
    "sparse": {"gradient": "sparse"},
    "local": {"gradient": "local"},
    "local, live 0.5": {"gradient": "local", "live": LiveSet(fraction=0.5)},
    "local, forks": {"gradient": "local", "live": LiveSet(kind="forks")},
    "local, flex_attention": {"gradient": "local", "attention": "flex_attention"},
    "sparse, flex_attention, checkpointing": {
        "gradient": "sparse",
        "attention": "flex_attention",
        "checkpointing": True,
    },
}


def steps(lines: Lines, device: Device) -> None:
    """Every way on completions of every length, then what zero-variance groups change."""
    lengths = (16,) if device.tiny else LENGTHS
    for length in lengths:
        workload = Workload(device, length)
        name = f"{PROMPTS * SAMPLES} x {length}"
        lines.measure(f"{name}: sampler's numbers", workload.annotate, expected_s=workload.once_s)
        for way, kind in WAYS.items():
            _measure_ours(lines, workload, f"{name}: {way}", kind)
        _measure_trl(lines, workload, f"{name}: TRL", workload.groups)
    half = Workload(device, lengths[0], flat=PROMPTS // 2)
    name = f"{PROMPTS * SAMPLES} x {lengths[0]}, half of the groups flat"
    lines.measure(f"{name}: sampler's numbers", half.annotate, expected_s=half.once_s)
    way = "sparse, checkpointing"
    _measure_ours(lines, half, f"{name}: {way}", WAYS[way])
    _measure_trl(lines, half, f"{name}: TRL", half.groups)
    taught = [group for group in half.groups if group.teaches]
    _measure_trl(lines, half, f"{name}: TRL without them", taught)


def _measure_ours(lines: Lines, workload: "Workload", name: str, kind: dict[str, Any]) -> None:
    expected_s = 2 * workload.once_s
    if "attention" in kind and workload.device.is_cuda:
        expected_s += COMPILE_S
    lines.measure(name, lambda: workload.step(kind), expected_s=expected_s)


def _measure_trl(lines: Lines, workload: "Workload", name: str, groups: list[SampledGroup]) -> None:
    expected_s = 2 * workload.once_s + (TRAINER_S if workload.device.is_cuda else 0)
    lines.measure(name, lambda: workload.trl(groups), expected_s=expected_s)


class Workload:
    """Groups of random completions and what a policy says of them."""

    def __init__(self, device: Device, length: int, *, flat: int = 0) -> None:
        self.device = device
        self.shape: Shape = TINY if device.tiny else QWEN3_1_7B
        self.prompt_tokens = 8 if device.tiny else PROMPT_TOKENS
        self.groups = random_groups(
            self.shape,
            prompts=PROMPTS,
            prompt_tokens=self.prompt_tokens,
            lengths=[length] * SAMPLES,
            flat=flat,
        )
        self.width = self.prompt_tokens + length
        self._batch: TokenBatch | None = None

    @property
    def once_s(self) -> float:
        """A guess at the seconds of one step, or of what is no longer than it."""
        if not self.device.is_cuda:
            return 0.0
        rate = RATE_SHARE * 1e12 * self.device.rates["bfloat16"]
        return BUILD_S + self._dense_operations / rate

    @property
    def _dense_operations(self) -> float:
        """Of one step that runs every token and every logit."""
        shape, tokens = self.shape, PROMPTS * SAMPLES * self.width
        attention = shape.heads * shape.head_dim
        layer = 2 * attention * shape.width + 2 * shape.kv_heads * shape.head_dim * shape.width
        layer += 3 * shape.intermediate * shape.width
        forward = 2 * tokens * (shape.layers * layer + shape.vocabulary * shape.width)
        forward += 4 * tokens * self.width * shape.layers * attention
        return 3.0 * forward

    def annotate(self) -> dict[str, Any]:
        """One pass without gradient over all of it; the batch keeps its numbers."""
        built = build(self._setup(gradient="sparse"))
        batch = build_batch(records(self.groups), advantage="grpo")

        def annotate() -> None:
            self._batch = as_sampled(built.policy, batch, self.width)

        seconds = self.device.seconds(annotate, 1)
        return {"seconds": seconds, "tokens": batch.num_tokens}

    def step(self, kind: dict[str, Any]) -> dict[str, Any]:
        """Seconds, memory and work of one optimizer step, after those that warm up."""
        if kind.get("attention") == "flex_attention" and not self.device.is_cuda:
            raise Skip("FlexAttention has no backward pass on a CPU")
        if self._batch is None:
            raise Skip("the sampler's numbers are missing, see above")
        built = build(self._setup(**kind))
        metrics: dict[str, float] = {}

        def step() -> None:
            result = train_step(
                built.policy, built.optimizer, self._batch, built.config, step=0, same_weights=True
            )
            if result.fault:
                raise RuntimeError(result.fault)
            metrics.update(result.metrics)

        first = self.device.seconds(step, 1)  # loads kernels, compiles, makes the moments
        held = self.device.used_gb()
        self.device.reset_peak()
        seconds = self.device.seconds(step, 1)
        chosen = {k: v for k, v in metrics.items() if k.startswith(("work/", "mismatch/"))}
        return {
            "seconds": seconds,
            "first_seconds": first,
            "peak_gb": self.device.peak_gb(),
            "held_gb": held,
            **self._rate(metrics["work/flops"], seconds),
            "rows": built.policy.rows,
            **chosen,
        }

    def trl(self, groups: list[SampledGroup]) -> dict[str, Any]:
        """The same of TRL's trainer; its operations are those of every token and every logit."""
        try:
            import trl  # noqa: F401

            from benchmarks.trl_step import train
        except Exception as error:  # of any kind: it looks for many other packages
            raise Skip(f"TRL cannot be imported: {error}") from error
        with redirect_stdout(sys.stderr):  # where it prints a table of its own
            seconds, peaks_gb = train(
                qwen3(self.shape, self.device.name, "sdpa"),
                word_tokenizer(self.shape.vocabulary),
                groups,
                batch_size=1,
                repeats=2,
                begin=self.device.reset_peak,
                memory_gb=self.device.peak_gb,
                use_cpu=not self.device.is_cuda,
                bf16=True,
                gradient_checkpointing=True,
            )
        operations = self._dense_operations * len(groups) / len(self.groups)
        return {
            "seconds": seconds[-1],
            "first_seconds": seconds[0],
            "peak_gb": peaks_gb[-1],
            **self._rate(operations, seconds[-1]),
        }

    def _rate(self, operations: float, seconds: float) -> dict[str, float]:
        tflops = operations / seconds / 1e12
        return {"tflops": tflops, "share_of_rate": tflops / self.device.rates["bfloat16"]}

    def _setup(self, **kind: Any) -> Setup:
        return Setup(
            shape=self.shape,
            device=self.device.name,
            compute_dtype="bfloat16",
            micro_batch_tokens=self.width,
            **kind,
        )
