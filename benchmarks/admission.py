"""What admitting requests as rows end is worth: the engine beside itself in whole batches.

The laboratory's policy samples the same completions in both ways, in turn, so seconds are compared
pair by pair.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from forkpoint.config.stages import LabTaskConfig, ModelConfig
from forkpoint.policy import load_model
from forkpoint.policy.load import LoadedModel
from forkpoint.sampling.base import SampleRequest, SamplingSettings
from forkpoint.sampling.prompting import Prompter
from forkpoint.sampling.rows import PLAIN
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.tasks import build_task

RESULTS = Path(__file__).with_name("results") / "admission.json"
SAMPLES = 12
SETTINGS = SamplingSettings(max_new_tokens=256, temperature=1.0, seed=0, step=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--places", type=int, nargs="+", default=[8, 32, 96, 240])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model(ModelConfig(path="lab:game"))
    requests = lab_requests(loaded, options.requests)
    rows = [measure(loaded, requests, places, options.repeats) for places in options.places]
    options.out.write_text(
        json.dumps({"requests": options.requests, "rows": rows}, indent=1) + "\n"
    )
    print("| places | whole batches, s | admitted, s | whole / admitted, median (each pair) |")
    print("|---|---|---|---|")
    for row in rows:
        pairs = " ".join(f"{ratio:.2f}" for ratio in row["ratios"])
        print(
            f"| {row['places']} | {row['whole_s']:.2f} | {row['admitted_s']:.2f} | "
            f"{statistics.median(row['ratios']):.2f} ({pairs}) |"
        )


def lab_requests(loaded: LoadedModel, count: int) -> list[SampleRequest]:
    """Held-out problems of the laboratory, ``SAMPLES`` of each."""
    prompter = Prompter(
        loaded.tokenizer, max_positions=None, max_new_tokens=SETTINGS.max_new_tokens
    )
    problems = build_task(LabTaskConfig()).held_out(-(-count // SAMPLES), seed=0)
    prompts = [prompter(problem) for problem in problems]
    return [
        SampleRequest(prompt=prompts[n // SAMPLES], serial=n // SAMPLES, sample=n % SAMPLES)
        for n in range(count)
    ]


def measure(
    loaded: LoadedModel, requests: list[SampleRequest], places: int, repeats: int
) -> dict[str, Any]:
    """Seconds of all requests in ``places`` rows side by side, both ways."""
    ways = {"whole": replace(PLAIN, joins=False), "admitted": PLAIN}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    lengths = {}
    for repeat in range(repeats + 1):
        for way, decoding in ways.items():
            engine = TransformersEngine(loaded, decoding=decoding, batch_sequences=places)
            started = time.perf_counter()
            made = engine.sample(requests, SETTINGS)
            if repeat:  # the first round warms up
                seconds[way].append(time.perf_counter() - started)
            lengths[way] = [len(c.token_ids) for c in made]
    if lengths["whole"] != lengths["admitted"]:
        raise SystemExit("the two ways sampled different completions")
    return {
        "places": places,
        "tokens": sum(lengths["whole"]),
        "whole_s": statistics.median(seconds["whole"]),
        "admitted_s": statistics.median(seconds["admitted"]),
        "ratios": [a / b for a, b in zip(seconds["whole"], seconds["admitted"], strict=True)],
    }


if __name__ == "__main__":
    main()
