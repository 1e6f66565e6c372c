"""How far bfloat16 sampling is from the trainer's numbers, with and without the float32 head.

    python -m benchmarks.mismatch --model lab:game --prompts 16
    python -m benchmarks.mismatch --model models/smollm2 --prompts 2 --max-new-tokens 60

Samples completions in bfloat16 and takes their log-probabilities and entropies once more in tree
rows, as training does; a line of JSON for each way to make the sampler's logits.
"""

import argparse
import json
from contextlib import closing
from dataclasses import replace
from typing import Any

from forkpoint.batching import build_batch
from forkpoint.config import RunConfig, parse_config
from forkpoint.policy import PolicyModule
from forkpoint.sampling import SampleRequest, SamplingParts, build_sampling
from forkpoint.sampling.base import SamplingSettings
from forkpoint.sampling.rows import settle_decoding
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.types import Group, Rollout, Score

SAMPLES = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="lab:game")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    options = parser.parse_args()
    lab = options.model == "lab:game"
    config = parse_config(
        {
            "model": {"path": options.model, "compute_dtype": "bfloat16"},
            "task": {"type": "lab"} if lab else {"type": "gym", "name": "gsm_symbolic"},
            "rollout": {"max_new_tokens": options.max_new_tokens},
        }
    )
    with closing(build_sampling(config)) as parts:
        for exact in (True, False):
            print(json.dumps({"float32_head": exact, **mismatch(parts, config, options, exact)}))


def mismatch(
    parts: SamplingParts, config: RunConfig, options: argparse.Namespace, exact: bool
) -> dict[str, Any]:
    """Differences between the sampler's numbers and the trainer's over all tokens, in nats."""
    decoding = replace(settle_decoding(parts.loaded.model), knows_head=exact)
    requests = [
        SampleRequest(prompt=parts.prompter(parts.task.problem(n)), serial=n, sample=sample)
        for n in range(options.prompts)
        for sample in range(SAMPLES)
    ]
    engine = TransformersEngine(parts.loaded, decoding=decoding, batch_sequences=len(requests))
    settings = SamplingSettings(
        max_new_tokens=options.max_new_tokens, temperature=1.0, seed=0, step=0
    )
    rollouts = [
        Rollout(completion=completion, score=Score(reward=float(request.sample)))
        for request, completion in zip(requests, engine.sample(requests, settings), strict=True)
    ]
    groups = [
        Group(
            prompt=requests[first].prompt,
            serial=requests[first].serial,
            rollouts_G=tuple(rollouts[first : first + SAMPLES]),
        )
        for first in range(0, len(requests), SAMPLES)
    ]
    batch = build_batch(groups, advantage="grpo")
    policy = PolicyModule(parts.loaded.model, gradient="sparse", temperature=1.0)
    stats = policy.annotate(batch, max_tokens=config.training.micro_batch_tokens)
    assert batch.rollout_entropies_T is not None
    found: dict[str, Any] = {"tokens": batch.num_tokens}
    for name, ours_T, theirs_T in (
        ("logprob", stats.logprobs_R, batch.rollout_logprobs_T),
        ("entropy", stats.entropies_R, batch.rollout_entropies_T),
    ):
        gap_T = (ours_T - theirs_T).abs()
        found |= {f"{name}_mean": float(gap_T.mean()), f"{name}_max": float(gap_T.max())}
    return found


if __name__ == "__main__":
    main()
