"""Bytes on one GPU (or in one process on a CPU), while it trains and while it samples.

With P parameters of which P_t are trained, N processes, b bytes a number of the compute type, P_l
parameters in the largest layer and P_o outside of layers, P_a of adapters, for a pass of M tokens:

    weights       4 (P + P_a) / N                     (adapters on one process: b P + 4 P_a)
    reference     b P, on every process: with a KL penalty
    gradients     4 P_t / N
    moments       8 P_t / N
    copies        b (P_o + 2 P_l)                     weights as they compute, two layers at once
    in flight     (b + 4) max(P_o, P_l)               a part's gradient before it is scattered
    activations   what autograd keeps of M tokens, counted by a pass without storage; checkpointed:
                  b M D a layer, and what one layer keeps
    head          b D a selected row, 4 V D for the gradient of its weight, 12 bytes a logit of a
                  chunk; dense: 28 bytes a logit of all M
    step          46 bytes a token of the step, on every process
    kept keys     keys and values of a step's tokens, a prompt once for each completion (a run holds
                  it once), at most training.keys_gb: local without the first hop, one process
    sampling      the weights in the compute type, keys and values of all rows side by side

On the host, while it loads: 4 (P + P_a) a process, or b P + 4 P_a for adapters on one.

One process in float32 makes no copies and has nothing in flight, but a head's and an embedding's
gradient exist twice for a moment: 4 V D.
"""

from dataclasses import dataclass

import torch

from forkpoint.config import RunConfig
from forkpoint.entropy.head import CHUNK_ELEMENTS
from forkpoint.plan.sizes import Sizes
from forkpoint.plan.step import StepTokens
from forkpoint.selection.names import reads_fraction

STEP_BYTES = 46
"""A token's entries of a batch in a step: ids, places, masks, log-probabilities, coefficients."""
LOGIT_BYTES = 12
"""Of a chunk's logit at the peak: z, e^z and the gradient, float32."""
DENSE_LOGIT_BYTES = 28
"""Of every logit, with ``dense``: the model's, their rows, z, ln p, e^z, and two gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What one process holds at its peak, by what it is for: bytes."""

    training: dict[str, float]
    sampling: dict[str, float]
    host: float
    """Of the host, while the process loads the model."""

    @property
    def peak(self) -> float:
        """Bytes; training and sampling take turns."""
        return max(sum(self.training.values()), sum(self.sampling.values()))


def memory(
    config: RunConfig, sizes: Sizes, step: StepTokens, processes: int, *, device: str = "cuda"
) -> Memory:
    """
    Args:
        sizes: counted for ``pass_tokens`` tokens.
        device: ``cuda`` or ``cpu``, whose chunks of logits differ.
    """
    compute = getattr(torch, config.model.compute_dtype).itemsize
    alone = processes == 1
    lora = config.model.lora is not None
    wrapped = not (alone and (compute == 4 or lora))  # by FSDP
    width = compute if alone and lora else 4
    tokens = pass_tokens(config, step)
    head = sizes.vocabulary * sizes.width
    rows = head_share(config) * tokens
    if config.training.gradient == "dense":
        rows = tokens
    trains_head = sizes.trained == sizes.parameters
    chunk = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["other"])
    logits = LOGIT_BYTES * min(chunk, rows * sizes.vocabulary)
    if config.training.gradient == "dense":
        logits = DENSE_LOGIT_BYTES * rows * sizes.vocabulary
    training = {
        "weights": (width * sizes.parameters + (4 * sizes.trained if lora else 0)) / processes,
        "gradients": 4 * sizes.trained / processes,
        "moments": 8 * sizes.trained / processes,
        "activations": activations(config, sizes, tokens, compute),
        "head": compute * rows * sizes.width + logits + (4 * head if trains_head else 0),
        "step": STEP_BYTES * (step.completion_tokens),
    }
    if wrapped:
        training["copies"] = compute * (sizes.outside + 2 * sizes.largest_layer)
        training["in flight"] = (compute + 4) * max(
            sizes.outside if trains_head else 0, sizes.largest_layer
        )
    if config.loss.kl_coefficient:
        training["reference"] = compute * sizes.parameters
    if config.training.gradient == "local" and not config.training.first_hop and alone:
        most = 1e9 * config.training.keys_gb
        training["kept keys"] = min(most, compute * sizes.key_width * step.tokens)
    lasting = ("weights", "moments", "reference", "kept keys")
    held = {name: training[name] for name in lasting if name in training}
    sampling = dict(held)
    if config.rollout.engine == "transformers":
        if wrapped:
            sampling["copies"] = compute * sizes.parameters
        sampling["keys and values"] = cache_bytes(config, sizes, step, processes, compute)
    loads = width * sizes.parameters + (4 * sizes.trained if lora else 0)
    return Memory(training=training, sampling=sampling, host=loads)


def head_share(config: RunConfig) -> float:
    """The share of completion tokens whose head rows run: the selected ones, or all where a ratio
    of sequences or a penalty needs them, or where the fraction does not say how many are kept. Of a
    fraction that changes, the larger end."""
    loss = config.loss
    penalties = loss.penalties_on == "all" and (loss.kl_coefficient or loss.entropy_bonus)
    s = config.selection
    if not reads_fraction(s.rule) or loss.surrogate == "gspo" or penalties:
        return 1.0
    return max(s.keep_fraction, s.keep_fraction_start or 0.0)


def pass_tokens(config: RunConfig, step: StepTokens) -> int:
    """Tokens of the largest pass: a single sequence may be longer than a micro-batch."""
    if config.training.micro_batch_sequences is not None:
        return config.training.micro_batch_sequences * step.longest
    return max(config.training.micro_batch_tokens, step.longest)


def activations(config: RunConfig, sizes: Sizes, tokens: int, compute: int) -> float:
    """Bytes that autograd keeps of the body in a pass."""
    if config.model.gradient_checkpointing:
        return compute * tokens * sizes.width * sizes.layers + sizes.kept_by_a_layer
    return sizes.kept_bytes


def cache_bytes(
    config: RunConfig, sizes: Sizes, step: StepTokens, processes: int, compute: int
) -> float:
    """Keys and values of all rows that the in-process engine has side by side."""
    rollout = config.rollout
    prompts = -(-rollout.prompts_per_step // processes)  # which are not divided
    rows = min(rollout.batch_sequences, prompts * rollout.group_size)
    wanted = compute * sizes.key_width * rows * step.longest
    return wanted if rollout.cache_gb is None else min(wanted, 1e9 * rollout.cache_gb)
