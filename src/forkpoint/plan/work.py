"""Operations of a step: matrix products only, by the shapes of policy/flops.py.

For S sequences of p prompt and l completion tokens, T = S (p + l), with M weights of the layers'
matrices that a token meets, A layers times attention width, V D the head and k the share of
selected tokens; a pass over t tokens that see c others on average costs t (2 M + 4 c A):

    pass      T (2 M + 4 c A)         c = (p + l) / 2
    sampling  the same for all that is sampled, and 2 V D a token
    old       a pass without gradient, and 2 V D a completion token: where the engine has no
              entropies, or other weights; once more for the reference of a KL penalty
    dense     3 passes (4 checkpointed), and 6 V D a completion token
    sparse    the same passes, shared prompts once, and 8 V D k a completion token
    local     a pass without gradient, and 3 (2 M + 4 c A) for the share of positions that is live,
              8 V D k; for scores 2 c A k, and for the first hop 2 D (3 K + A) for the rest, K being
              the width of all layers' keys and values
"""

from collections.abc import Callable
from dataclasses import dataclass

from forkpoint.config import RunConfig
from forkpoint.plan.memory import head_share
from forkpoint.plan.sizes import Sizes
from forkpoint.plan.step import StepTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Of a step, over all processes."""

    sampling: float
    old: float
    dense: float
    sparse: float
    local: float

    def update(self, gradient: str) -> float:
        """Of one way to make the gradient."""
        return getattr(self, gradient)


def operations(config: RunConfig, sizes: Sizes, step: StepTokens) -> Operations:
    """See the module."""
    head = 2.0 * sizes.vocabulary * sizes.width
    seen = (step.prompt + step.length) / 2

    def run(tokens: float) -> float:
        return tokens * (2.0 * sizes.matrices + 4.0 * seen * sizes.attention)

    passes = 4 if config.model.gradient_checkpointing else 3
    keep = head_share(config)
    completions = step.completion_tokens
    own_prompts = step.sequences * step.prompt
    shared_prompts = own_prompts / config.rollout.group_size if packs(config, step) else own_prompts
    sampled_sequences = step.sampled / step.length
    prompts_read = sampled_sequences / config.rollout.group_size * step.prompt
    return Operations(
        sampling=run(step.sampled + prompts_read) + head * step.sampled,
        old=(run(step.tokens) + head * completions) * passes_without_gradient(config),
        dense=passes * run(step.tokens) + 3 * head * completions,
        sparse=passes * run(completions + shared_prompts) + 4 * head * keep * completions,
        local=_local(config, sizes, run, completions + shared_prompts, seen, keep)
        + 4 * head * keep * completions,
    )


def _local(
    config: RunConfig,
    sizes: Sizes,
    run: Callable[[float], float],
    tokens: float,
    seen: float,
    keep: float,
) -> float:
    """The layers' part, over rows of ``tokens``."""
    training = config.training
    live = {"forks": keep, "all": 1.0}.get(training.live, max(keep, training.live_fraction))
    found = run(tokens) + 3 * run(live * tokens)
    if training.live == "looked_at":
        found += 2.0 * seen * sizes.attention * keep * tokens
    if training.first_hop:
        made = 3 * sizes.key_width + sizes.attention
        found += 2.0 * sizes.width * made * (1 - live) * tokens
    return found


def passes_without_gradient(config: RunConfig) -> int:
    """Over all tokens of a step: for log-probabilities and entropies before the first update where
    the sampler's are not those, for entropies before each update, for a reference."""
    old = config.rollout.engine != "transformers" or config.selection.entropy == "old"
    return old + (config.selection.entropy == "current") + bool(config.loss.kl_coefficient)


def packs(config: RunConfig, step: StepTokens) -> bool:
    """Whether completions of one prompt share a pass, so that it is run once."""
    return (
        config.training.micro_batch_tokens >= step.prompt + config.rollout.group_size * step.length
    )
