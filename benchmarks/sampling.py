"""The engine against ``model.generate``, and what capturing entropies costs; a line of JSON.

Both sample the same prompts from the same distribution (temperature 1, no truncation of it), so
seconds of a batch are compared. Their random numbers differ, and so the lengths: both are told.

What capturing entropies costs is clocked inside the engine's runs: two whole runs, with and
without, differ by less than the speed of a machine does between them.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads import RECORDED
from forkpoint.config.stages import ModelConfig
from forkpoint.policy import load_model
from forkpoint.sampling import transformers as engines
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.rows import PLAIN
from forkpoint.types import Problem, Prompt

SAMPLES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    loaded = load_model(ModelConfig(path="models/smollm2"))
    requests = recorded_requests(options.sequences)
    engine = engines.TransformersEngine(loaded, decoding=PLAIN, batch_sequences=options.sequences)
    found: dict[str, list[float]] = {
        f"{way}_{what}": [] for way in ("engine", "generate") for what in ("seconds", "tokens")
    }
    found["capture_seconds"] = []
    for repeat in range(options.repeats):
        settings = SamplingSettings(
            max_new_tokens=options.max_new_tokens, temperature=1.0, seed=repeat, step=0
        )
        with clocked_capture() as calls:
            _add(found, "engine", *timed_engine(engine, requests, settings))
        found["capture_seconds"].append(sum(calls))
        _add(found, "generate", *timed_generate(loaded, requests, settings))
    print(json.dumps(found))


def _add(found: dict[str, list[float]], way: str, seconds: float, tokens: int) -> None:
    found[f"{way}_seconds"].append(seconds)
    found[f"{way}_tokens"].append(tokens)


def recorded_requests(sequences: int) -> list[SampleRequest]:
    groups = json.loads(RECORDED.read_text())["groups"][: sequences // SAMPLES]
    return [
        SampleRequest(
            prompt=Prompt(
                problem=Problem(id=str(serial), prompt=group["prompt"]),
                token_ids=tuple(group["prompt_ids"]),
            ),
            serial=serial,
            sample=sample,
        )
        for serial, group in enumerate(groups)
        for sample in range(SAMPLES)
    ]


def timed_engine(
    engine: Any, requests: list[SampleRequest], settings: SamplingSettings
) -> tuple[float, int]:
    started = time.perf_counter()
    completions = engine.sample(requests, settings)
    seconds = time.perf_counter() - started
    return seconds, sum(len(c.token_ids) for c in completions)


@contextmanager
def clocked_capture() -> Iterator[list[float]]:
    """Collects the seconds of each call for the entropies; on a CPU, where calls do not return
    before they are done."""
    whole, calls = engines.entropy_of_logprobs, []

    def clocked(*args: Any) -> Tensor:
        started = time.perf_counter()
        entropies_R = whole(*args)
        calls.append(time.perf_counter() - started)
        return entropies_R

    engines.entropy_of_logprobs = clocked
    try:
        yield calls
    finally:
        engines.entropy_of_logprobs = whole


@torch.no_grad()
def timed_generate(
    loaded: Any, requests: list[SampleRequest], settings: SamplingSettings
) -> tuple[float, int]:
    """transformers' own sampling of the same prompts, left-padded."""
    prompts = [list(r.prompt.token_ids) for r in requests]
    width = max(map(len, prompts))
    pad = loaded.eos_ids[0]
    device = loaded.model.device
    ids_BL = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    mask_BL = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    torch.manual_seed(settings.seed)
    started = time.perf_counter()
    made_BL = loaded.model.generate(
        ids_BL,
        attention_mask=mask_BL,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=list(loaded.eos_ids),
        pad_token_id=pad,
    ).cpu()
    seconds = time.perf_counter() - started
    ended_BL = torch.isin(made_BL[:, width:], torch.tensor(loaded.eos_ids))
    before_BL = ended_BL.cumsum(1) - ended_BL.long()  # ends seen before this token
    return seconds, int((before_BL == 0).sum())


if __name__ == "__main__":
    main()
