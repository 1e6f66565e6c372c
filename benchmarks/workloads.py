"""The batches and models that the benchmarks run on.

``half_zero``, ``no_zero``: groups of a recorded step (``record_batch.py``), half of them or none
with zero variance. ``equal``: those of ``no_zero`` with every completion brought to their mean
length, by cutting it or repeating it. Token ids, lengths, entropies and rewards are as recorded.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from forkpoint.types import Completion, FinishReason, Group, Problem, Prompt, Rollout, Score

RECORDED = Path(__file__).with_name("recorded_batch.json")
WORKLOADS = ("half_zero", "no_zero", "equal")
GROUPS = 4
QWEN3_VOCABULARY = 151_936


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One recorded completion."""

    token_ids: list[int]
    logprobs: list[float]
    entropies: list[float]
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGroup:
    """One recorded prompt and its completions."""

    prompt: str
    """The user's message."""
    prompt_ids: list[int]
    samples: list[Sampled]

    @property
    def teaches(self) -> bool:
        return len({s.reward for s in self.samples}) > 1


def workload(name: str) -> list[SampledGroup]:
    """``GROUPS`` groups of 8."""
    groups = [_group(raw) for raw in json.loads(RECORDED.read_text())["groups"]]
    mixed = [g for g in groups if g.teaches]
    flat = [g for g in groups if not g.teaches]
    if name == "half_zero":
        return mixed[: GROUPS // 2] + flat[: GROUPS // 2]
    chosen = mixed[:GROUPS]
    if len(chosen) < GROUPS:
        raise SystemExit(f"{RECORDED} has only {len(chosen)} groups with different rewards")
    return [_equal(g, mean_length(chosen)) for g in chosen] if name == "equal" else chosen


def mean_length(groups: list[SampledGroup]) -> int:
    lengths = [len(s.token_ids) for g in groups for s in g.samples]
    return round(sum(lengths) / len(lengths))


def records(groups: list[SampledGroup]) -> list[Group]:
    """The groups as this package's records."""
    return [
        Group(
            prompt=Prompt(
                problem=Problem(id=str(serial), prompt=group.prompt),
                token_ids=tuple(group.prompt_ids),
            ),
            serial=serial,
            rollouts_G=tuple(_rollout(sample) for sample in group.samples),
        )
        for serial, group in enumerate(groups)
    ]


def load(model: str) -> Any:
    """``smollm2``, or ``wide``: a random Qwen3 with the real head and 4 of its layers."""
    if model == "smollm2":
        from forkpoint.config.stages import ModelConfig
        from forkpoint.policy import load_model

        return load_model(ModelConfig(path="models/smollm2")).model
    return qwen3(vocabulary=QWEN3_VOCABULARY, layers=4, width=1024)


def qwen3(*, vocabulary: int, layers: int, width: int) -> Any:
    """A randomly initialised Qwen3 of the proportions of Qwen3-0.6B."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        head_dim=128,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=2,
    )
    return Qwen3ForCausalLM(config).eval()


def _group(raw: dict[str, Any]) -> SampledGroup:
    columns = zip(
        raw["completion_ids"], raw["logprobs"], raw["entropies"], raw["rewards"], strict=True
    )
    samples = [
        Sampled(token_ids=ids, logprobs=logprobs, entropies=entropies, reward=float(reward or 0))
        for ids, logprobs, entropies, reward in columns
    ]
    asked = raw["prompt"] if isinstance(raw["prompt"], str) else raw["prompt"][-1]["content"]
    return SampledGroup(prompt=asked, prompt_ids=raw["prompt_ids"], samples=samples)


def _equal(group: SampledGroup, length: int) -> SampledGroup:
    def fit(values: list[Any]) -> list[Any]:
        return (values * (length // len(values) + 1))[:length]

    return SampledGroup(
        prompt=group.prompt,
        prompt_ids=group.prompt_ids,
        samples=[
            Sampled(
                token_ids=fit(s.token_ids),
                logprobs=fit(s.logprobs),
                entropies=fit(s.entropies),
                reward=s.reward,
            )
            for s in group.samples
        ],
    )


def _rollout(sample: Sampled) -> Rollout:
    return Rollout(
        completion=Completion(
            token_ids=tuple(sample.token_ids),
            logprobs=tuple(sample.logprobs),
            entropies=tuple(sample.entropies),
            finish_reason=FinishReason.STOP,
            text="",
        ),
        score=Score(reward=sample.reward, verdict=sample.reward, parts={"task": sample.reward}),
    )
