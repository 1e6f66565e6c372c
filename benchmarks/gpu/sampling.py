"""Stage d: the in-process engine against ``model.generate``, both drawing from softmax(z)."""

from typing import Any

from benchmarks.gpu.device import Device
from benchmarks.gpu.lines import Lines
from benchmarks.gpu.models import (
    QWEN3_1_7B,
    TINY,
    Setup,
    Shape,
    build,
    lab_requests,
    random_groups,
)
from benchmarks.sampling import timed_engine, timed_generate
from forkpoint.policy import LoadedModel
from forkpoint.policy.precision import unsharded
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.rows import PLAIN
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.types import Problem, Prompt

PROMPTS, SAMPLES, PROMPT_TOKENS, NEW_TOKENS = 16, 4, 128, 256
STEP_S = 0.06
"""A guess at the seconds of one pass over a token of each sequence."""


def sampling(lines: Lines, device: Device) -> None:
    """A model of 1.7 billion parameters, then the laboratory's policy."""
    new_tokens = 8 if device.tiny else NEW_TOKENS
    expected_s = 4 * STEP_S * new_tokens if device.is_cuda else 0.0
    for name, shape in (("Qwen3-1.7B's shape", TINY if device.tiny else QWEN3_1_7B), ("lab", None)):
        lines.measure(
            f"engine and generate, {name}",
            lambda shape=shape: compare(device, shape, new_tokens),
            expected_s=expected_s,
        )


def compare(device: Device, shape: Shape | None, new_tokens: int) -> dict[str, Any]:
    """Seconds and tokens of a batch of each, the second of two; their lengths differ by chance."""
    built = build(Setup(shape=shape, device=device.name, compute_dtype="bfloat16"))
    loaded = built.loaded
    prompts, samples = (2, 2) if device.tiny else (PROMPTS, SAMPLES)
    if shape is None:
        requests = lab_requests(loaded.tokenizer, prompts=prompts, samples=samples)
    else:
        requests = random_requests(shape, prompts, samples)
    found: dict[str, Any] = {"sequences": len(requests)}
    for seed in range(2):  # the first one loads what is needed
        settings = SamplingSettings(max_new_tokens=new_tokens, temperature=1.0, seed=seed, step=0)
        for way in ("engine", "generate"):
            device.reset_peak()
            with unsharded(built.policy):
                seconds, tokens = timed(way, loaded, requests, settings)
            found[f"{way}_seconds"], found[f"{way}_tokens"] = seconds, tokens
            found[f"{way}_tokens_per_s"] = tokens / seconds
            found[f"{way}_peak_gb"] = device.peak_gb()
    return found | {"generate_over_engine": found["generate_seconds"] / found["engine_seconds"]}


def timed(
    way: str, loaded: LoadedModel, requests: list[SampleRequest], settings: SamplingSettings
) -> tuple[float, int]:
    """Seconds and tokens; both ways end with their tokens on the CPU or in a comparison."""
    if way == "generate":
        return timed_generate(loaded, requests, settings)
    engine = TransformersEngine(loaded, decoding=PLAIN, batch_sequences=len(requests))
    return timed_engine(engine, requests, settings)


def random_requests(shape: Shape, prompts: int, samples: int) -> list[SampleRequest]:
    """Prompts of random tokens."""
    groups = random_groups(shape, prompts=prompts, prompt_tokens=PROMPT_TOKENS, lengths=())
    return [
        SampleRequest(
            prompt=Prompt(
                problem=Problem(id=str(serial), prompt=group.prompt),
                token_ids=tuple(group.prompt_ids),
            ),
            serial=serial,
            sample=sample,
        )
        for serial, group in enumerate(groups)
        for sample in range(samples)
    ]
