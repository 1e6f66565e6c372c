"""Record a real step's rollouts for the benchmarks: ``benchmarks/recorded_batch.json``.

SmolLM2-135M-Instruct answers one-digit sums of reasoning-gym step by step. What is kept of each
completion: its token ids, log-probabilities, entropies and reward, as sampled.
"""

import argparse
import json
from pathlib import Path

from forkpoint.config import parse_config
from forkpoint.sampling import build_sampling, collect_groups
from forkpoint.sampling.base import SamplingSettings

HERE = Path(__file__).parent
CONFIG = {
    "model": {"path": "models/smollm2"},
    "task": {
        "type": "gym",
        "name": "chain_sum",
        "parameters": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
        "instruction": " Think step by step.",
        "answer_format": "number",
    },
    "rollout": {"group_size": 8, "max_new_tokens": 256, "dynamic_sampling": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--out", type=Path, default=HERE / "recorded_batch.json")
    options = parser.parse_args()
    config = parse_config(CONFIG)
    rollout = config.rollout.model_copy(update={"prompts_per_step": options.prompts})
    parts = build_sampling(config)
    try:
        rollouts = collect_groups(
            parts,
            rollout,
            SamplingSettings(
                max_new_tokens=rollout.max_new_tokens, temperature=1.0, seed=0, step=1
            ),
            first_serial=0,
        )
    finally:
        parts.close()
    groups = [
        {
            "prompt": group.prompt.problem.prompt,
            "prompt_ids": group.prompt.token_ids,
            "rewards": [r.score.reward for r in group.rollouts_G],
            "finish_reasons": [str(r.completion.finish_reason) for r in group.rollouts_G],
            "completion_ids": [r.completion.token_ids.tolist() for r in group.rollouts_G],
            "logprobs": [_rounded(r.completion.logprobs) for r in group.rollouts_G],
            "entropies": [_rounded(r.completion.entropies) for r in group.rollouts_G],
        }
        for group in rollouts.groups
    ]
    options.out.write_text(json.dumps({"config": CONFIG, "groups": groups}) + "\n")


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 5) for value in values]


if __name__ == "__main__":
    main()
