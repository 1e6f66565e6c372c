"""Shared fixtures: a tiny random language model, and batches of made-up rollouts."""

import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import settings

from forkpoint.batching import build_batch
from forkpoint.policy.load import LoadedModel
from forkpoint.types import (
    Completion,
    FinishReason,
    Group,
    Problem,
    Prompt,
    Rollout,
    Score,
    TokenBatch,
)

# As the command line does; read once, when the library is first imported.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs a network

# No deadline: a loaded machine is not a fault.
settings.register_profile("forkpoint", deadline=None, max_examples=60)
settings.load_profile("forkpoint")

VOCABULARY = 61
EOS = 1


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny tensors: more threads only cost


def tiny_model(*, seed: int = 0, tied: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A Qwen3 of 2 layers with weights large enough that its distributions are not flat."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        eos_token_id=EOS,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).to(dtype).eval()


class NumberTokenizer:
    """Decodes ids to ``n<id>``: all that engines and records ask of a tokenizer."""

    eos_token_id = EOS
    chat_template = None

    def __len__(self) -> int:
        return VOCABULARY

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return " ".join(f"n{i}" for i in ids if not (skip_special_tokens and i == EOS))


@pytest.fixture
def loaded() -> LoadedModel:
    return LoadedModel(model=tiny_model(), tokenizer=NumberTokenizer(), eos_ids=(EOS,))


def make_group(
    serial: int,
    rewards: Sequence[float | None],
    lengths: Sequence[int],
    *,
    prompt_length: int = 4,
    seed: int = 0,
    entropies: Sequence[Sequence[float]] | None = None,
    finish: FinishReason = FinishReason.STOP,
) -> Group:
    """A group of made-up completions; entropies and log-probabilities are drawn."""
    generator = torch.Generator().manual_seed(seed * 1000 + serial)

    def numbers(count: int) -> list[float]:
        return torch.rand(count, generator=generator).tolist()

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCABULARY, (count,), generator=generator).tolist())

    rollouts = []
    prompt = Prompt(problem=Problem(id=f"p{serial}", prompt="x"), token_ids=ids(prompt_length))
    for sample, (reward, length) in enumerate(zip(rewards, lengths, strict=True)):
        completion = Completion(
            token_ids=ids(length),
            logprobs=tuple(-3.0 * u for u in numbers(length)),
            entropies=tuple(entropies[sample] if entropies else numbers(length)),
            finish_reason=finish,
            text=f"completion {serial}.{sample}",
        )
        score = Score(reward=reward, verdict=reward, parts={"verifier": reward})
        rollouts.append(Rollout(completion=completion, score=score))
    return Group(prompt=prompt, serial=serial, rollouts_G=tuple(rollouts))


def make_batch(*, seed: int = 0, groups: int = 3, **settings: Any) -> TokenBatch:
    """Groups of 3 with uneven prompts and completions; the last one has zero variance."""
    made = [
        make_group(
            serial,
            rewards=[1.0, 0.0, 0.0] if serial < groups - 1 else [1.0, 1.0, 1.0],
            lengths=[3 + serial, 9, 6 - serial % 2],
            prompt_length=3 + 2 * serial,
            seed=seed,
        )
        for serial in range(groups)
    ]
    return build_batch(made, **{"advantage": "grpo", **settings})
