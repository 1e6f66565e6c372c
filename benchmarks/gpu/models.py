"""The models and batches of the benchmark: made up on the spot, or shipped with the package."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.workloads import Sampled, SampledGroup
from forkpoint.config import RunConfig, parse_config
from forkpoint.config.stages import ModelConfig
from forkpoint.lab import GameWorld, draw_problem
from forkpoint.policy import LoadedModel, PolicyModule, load_model
from forkpoint.policy.body import enable_checkpointing
from forkpoint.policy.live import LiveSet
from forkpoint.policy.precision import compute_in
from forkpoint.sampling.base import SampleRequest
from forkpoint.training.optimizer import Optimizer
from forkpoint.types import Prompt, TokenBatch

EOS = 2
"""The token that ends a completion of a made-up model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Qwen3 with tied embeddings."""

    vocabulary: int
    width: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


QWEN3_1_7B = Shape(
    vocabulary=151_936,
    width=2048,
    intermediate=6144,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
)
SMALL = Shape(
    vocabulary=8192, width=512, intermediate=1536, layers=4, heads=8, kv_heads=4, head_dim=64
)
TINY = Shape(vocabulary=512, width=64, intermediate=128, layers=2, heads=4, kv_heads=2, head_dim=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What to build."""

    shape: Shape | None
    """With random weights, the same ones each time; None: the laboratory's policy."""
    device: str
    compute_dtype: str = "float32"
    gradient: str = "sparse"
    live: LiveSet | None = None
    """Of ``local``; None: its default."""
    attention: str = "sdpa"
    checkpointing: bool = False
    lr: float = 1e-12
    """The default is so small that repeated steps have the same weights."""
    micro_batch_tokens: int = 4096
    weights: Path | None = None
    """A checkpoint of the laboratory's policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Made by ``build``."""

    loaded: LoadedModel
    policy: PolicyModule
    optimizer: Optimizer
    config: RunConfig


def build(setup: Setup) -> Built:
    """The one place that knows how a policy and its optimizer are put together."""
    config = parse_config(
        {
            "model": {
                "compute_dtype": setup.compute_dtype,
                "device": setup.device,
                "attention": setup.attention,
                "gradient_checkpointing": setup.checkpointing,
            },
            "optim": {"lr": setup.lr},
            "training": {
                "gradient": setup.gradient,
                "mini_batches": 1,
                "micro_batch_tokens": setup.micro_batch_tokens,
            },
        }
    )
    if setup.shape is None:
        loaded = load_model(config.model, weights=setup.weights, trained=True)
    else:
        loaded = _made_up(setup.shape, config.model)
    policy = PolicyModule(
        loaded.model,
        gradient=setup.gradient,
        temperature=1.0,
        row_tokens=setup.micro_batch_tokens,
        live=setup.live,
    )
    compute_in(policy, getattr(torch, setup.compute_dtype))
    optimizer = Optimizer(loaded.model, config.optim)
    return Built(loaded=loaded, policy=policy, optimizer=optimizer, config=config)


def _made_up(shape: Shape, config: ModelConfig) -> LoadedModel:
    model = qwen3(shape, config.device, config.attention)
    if config.gradient_checkpointing:
        enable_checkpointing(model)
    return LoadedModel(model=model, tokenizer=word_tokenizer(shape.vocabulary), eos_ids=(EOS,))


def qwen3(shape: Shape, device: str, attention: str) -> Any:
    """In float32, with random weights."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=True,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


def word_tokenizer(size: int) -> Any:
    """A tokenizer of ``size`` words, one token each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=f"w{EOS}", pad_token=f"w{EOS}"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return tokenizer


def random_groups(
    shape: Shape, *, prompts: int, prompt_tokens: int, lengths: Sequence[int], flat: int = 0
) -> list[SampledGroup]:
    """``prompts`` groups of random tokens, one completion for each of ``lengths``.

    Half of a group's rewards are 1; in the first ``flat`` groups all are.
    """
    draw = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(EOS + 1, shape.vocabulary) for _ in range(count)]

    def sample(group: int, index: int, length: int) -> Sampled:
        reward = 1.0 if group < flat else float(index % 2)
        unknown = [0.0] * length
        return Sampled(token_ids=tokens(length), logprobs=unknown, entropies=unknown, reward=reward)

    return [
        SampledGroup(
            prompt=f"w{EOS + 1 + group}",
            prompt_ids=tokens(prompt_tokens),
            samples=[sample(group, index, length) for index, length in enumerate(lengths)],
        )
        for group in range(prompts)
    ]


def as_sampled(policy: PolicyModule, batch: TokenBatch, max_tokens: int) -> TokenBatch:
    """The batch with the log-probabilities and entropies of ``policy``, as if it had sampled it."""
    stats = policy.annotate(batch, max_tokens=max_tokens)
    return batch.with_streams(
        rollout_logprobs_T=stats.logprobs_R, rollout_entropies_T=stats.entropies_R
    )


def lab_requests(tokenizer: Any, *, prompts: int, samples: int) -> list[SampleRequest]:
    """Problems of the laboratory, ``samples`` completions of each wanted."""
    world, requests = GameWorld(), []
    for serial in range(prompts):
        problem = draw_problem(world, seed=0, serial=serial, split="train")
        ids = tuple(tokenizer(problem.prompt)["input_ids"])
        prompt = Prompt(problem=problem, token_ids=ids)
        requests += [
            SampleRequest(prompt=prompt, serial=serial, sample=sample) for sample in range(samples)
        ]
    return requests
