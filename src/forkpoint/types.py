"""START HERE: the records that flow through the pipeline, in the order they flow.

    Problem -> Prompt -> Completion -> Rollout -> Group -> TokenBatch -> TokenStats
            -> Selection -> LossOutput -> Metric

Shape suffixes, used everywhere: ``_P`` prompts, ``_G`` samples of one group, ``_B`` sequences of a
batch, ``_T`` completion tokens of a batch laid end to end (ragged, no padding), ``_R`` the rows
(tokens) a computation looked at, ``_V`` vocabulary, ``_D`` hidden width. Entropies and
log-probabilities are in nats, at the sampling temperature. One field, one meaning: a reward is
never overwritten by an advantage. Masks come from lengths, never from comparing with a pad token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:  # records are used by packages that never import torch
    from torch import Tensor

Message: TypeAlias = Mapping[str, str]


class FinishReason(StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # the model emitted an end-of-sequence token, which is the last token id
    LENGTH = "length"  # the token budget ran out: truncated
    UNKNOWN = "unknown"  # read from a file that does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One exercise, as a task yields it. Made by ``tasks``; read by ``sampling`` and ``rewards``.

    Example: ``Problem(id="chain_sum/17", prompt="What is 3 + 4?", columns={"answer": "7"})``
    """

    id: str
    """Unique within the task; stable between runs."""
    prompt: str | tuple[Message, ...]
    """Plain text, given to the tokenizer as it is, or chat messages, given to its chat template."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What else the row holds (``answer``, ...); reward functions get it by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem in the model's tokens. Made by ``sampling.prompting``; read by engines."""

    problem: Problem
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """An answer of T tokens and what is known of each: the one type for it in memory.

    Made by engines, read from files by ``runs.completions``, scored by ``policy.teacher``. Whatever
    sequences of numbers it is given become arrays. Two are equal if all they hold is.

    Example: ``Completion(token_ids=[9, 4, 2], logprobs=[-0.1, -2.0, 0.0], entropies=[0.3, 1.1,
    0.0], finish_reason=FinishReason.STOP, text="n7 yes")``
    """

    token_ids: np.ndarray
    """int32 [T], the end-of-sequence token included when there is one."""
    logprobs: np.ndarray
    """float32 [T], ln p of each token under the distribution it was sampled from; nan: unknown."""
    entropies: np.ndarray | None
    """float32 [T] nats, from the same logits; None if the engine cannot see whole distributions."""
    finish_reason: FinishReason
    text: str
    """Decoded without special tokens."""
    energies: np.ndarray | None = None
    """float32 [T], E = || onehot(y) - p ||^2 of each token, from the same logits: the squared norm
    of its policy gradient there if its advantage is 1. Not stored in files."""
    top_ids: np.ndarray | None = None
    """int32 [T, K], the most likely token ids in each place, descending; from teacher forcing."""
    top_logprobs: np.ndarray | None = None
    """float32 [T, K] nats, of those."""
    weights_version: int | None = None
    """Updates that had been made to the weights it was sampled from, where the engine knows."""

    def __post_init__(self) -> None:
        for name, dtype in _ARRAYS.items():
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, np.asarray(values, dtype))

    def __len__(self) -> int:
        return len(self.token_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Completion):
            return NotImplemented
        pairs = [(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return all(_same(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype == np.float32)
    return a is b or a == b


_ARRAYS = {
    "token_ids": np.int32,
    "top_ids": np.int32,
    "logprobs": np.float32,
    "entropies": np.float32,
    "energies": np.float32,
    "top_logprobs": np.float32,
}
"""The arrays of a ``Completion`` and what their entries are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the rewards say of one completion. Made by ``rewards``."""

    reward: float | None
    """The sum of the weighted parts; None: leave this sample out."""
    verdict: float | None = None
    """What the verifier alone gave, unweighted: 1 or more is a right answer. None: it gave nothing.
    Which reward is the verifier is decided in one place, ``rewards.build.verifier_of``."""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    """By the reward function's name, unweighted."""
    error: str | None = None
    """Why a verifier gave nothing: an exception's text or ``timeout after 4 s``."""
    timed_out: bool = False
    """A verifier used up its time or its memory."""

    @property
    def right(self) -> bool | None:
        """Whether the verifier gave full marks; None if it gave nothing."""
        return None if self.verdict is None else self.verdict >= 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A completion with its score. Made by ``sampling.groups``."""

    completion: Completion
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """G rollouts of one prompt. Made by ``sampling.groups``; read by ``advantages``."""

    prompt: Prompt
    serial: int
    """The prompt's position in the whole run's stream of prompts; orders everything."""
    rollouts_G: tuple[Rollout, ...]


def sequence_id(serial: int, sample: int, group_size: int) -> int:
    """The number of a sequence: unique in a run's step, ordered by prompt, then by sample."""
    return serial * group_size + sample


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """B sequences and the streams of their T completion tokens, all aligned.

    Made by ``batching.batch``; annotated, selected and split by ``training.step``; read by
    ``policy`` and ``losses``. Sequences follow each other in the ``_T`` streams.
    """

    prompts_B: "Sequence[Tensor]"
    """int64 [prompt length] each."""
    completions_B: "Sequence[Tensor]"
    """int64 [completion length] each."""
    sequence_ids_B: "Tensor"
    """int64 [B], unique in the run's step and independent of order: breaks ties."""
    token_ids_T: "Tensor"
    """int64 [T], the completions laid end to end."""
    sequence_T: "Tensor"
    """int64 [T], index into B."""
    position_T: "Tensor"
    """int64 [T], 0 at a completion's first token."""
    advantages_T: "Tensor"
    """float32 [T]."""
    mask_T: "Tensor"
    """bool [T], the tokens that may be trained on and that count in the denominator ``all``: every
    one, or without truncated completions."""
    pool_T: "Tensor"
    """bool [T], the tokens that compete for selection; one outside ``mask_T`` gets no weight."""
    rollout_logprobs_T: "Tensor"
    """float32 [T], the sampler's."""
    rollout_entropies_T: "Tensor | None" = None
    """float32 [T] nats, the sampler's, if it captured them."""
    rollout_energies_T: "Tensor | None" = None
    """float32 [T], the sampler's ``Completion.energies``, if it captured them."""
    old_logprobs_T: "Tensor | None" = None
    """float32 [T], of the policy before the step's first update."""
    old_entropies_T: "Tensor | None" = None
    """float32 [T] nats, of the same policy."""
    old_energies_T: "Tensor | None" = None
    """float32 [T], E of each token under the same policy."""
    reference_logprobs_T: "Tensor | None" = None
    """float32 [T], of the frozen reference model; only with a KL penalty."""
    weights_T: "Tensor | None" = None
    """float32 [T] >= 0, the selection: 0 means no policy gradient."""
    marked_T: "Tensor | None" = None
    """bool [T], tokens whose loss differs from that of the others; only with ``loss.marked``."""
    importance_T: "Tensor | None" = None
    """float32 [T], min(pi_old / pi_sampler, cap): what coefficients are multiplied by where the
    sampler does not hold the trainer's own weights."""
    coefficients_T: "Tensor | None" = None
    """float32 [T], weights over their denominator: what a token's surrogate is multiplied by."""
    penalty_coefficients_T: "Tensor | None" = None
    """float32 [T], the same for KL penalty and entropy bonus."""
    lengths_B: np.ndarray = field(init=False, repr=False, compare=False)
    """int64 [B], of the completions."""
    starts_B: np.ndarray = field(init=False, repr=False, compare=False)
    """int64 [B], where they begin in the ``_T`` streams."""

    def __post_init__(self) -> None:
        lengths_B = np.fromiter(map(len, self.completions_B), np.int64, len(self.completions_B))
        object.__setattr__(self, "lengths_B", lengths_B)
        object.__setattr__(self, "starts_B", lengths_B.cumsum() - lengths_B)

    @property
    def num_sequences(self) -> int:
        return len(self.completions_B)

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids_T.numel())

    def with_streams(self, **streams: "Tensor | None") -> "TokenBatch":
        """A copy with some ``_T`` streams set."""
        return replace(self, **streams)

    def rows_of(self, sequences: Sequence[int]) -> "Tensor":
        """Indices into the ``_T`` streams of the given sequences' tokens, one after the other:
        int64 on the CPU."""
        import torch

        chosen = np.asarray(sequences, dtype=np.int64)
        return torch.from_numpy(spans(self.starts_B[chosen], self.lengths_B[chosen]))

    def take(self, sequences: Sequence[int]) -> "TokenBatch":
        """The given sequences, in that order, with every stream following its sequence."""
        import torch

        device = self.token_ids_T.device
        chosen = torch.as_tensor(sequences, dtype=torch.int64)
        lengths = torch.from_numpy(self.lengths_B[chosen.numpy()])
        rows = sent(self.rows_of(sequences), device)
        streams = {name: stream[rows] for name, stream in self._streams().items()}
        sequence_T = torch.arange(len(chosen)).repeat_interleave(lengths)
        streams["sequence_T"] = sent(sequence_T, device)
        return replace(
            self,
            prompts_B=[self.prompts_B[b] for b in sequences],
            completions_B=[self.completions_B[b] for b in sequences],
            sequence_ids_B=self.sequence_ids_B[chosen],
            **streams,
        )

    def to(self, device: Any) -> "TokenBatch":
        """The same with every stream on a device.

        What the layout of a pass is planned from stays where it is: the ragged token ids of prompts
        and completions, and the sequences' ids.
        """
        return replace(self, **{name: sent(s, device) for name, s in self._streams().items()})

    def _streams(self) -> "dict[str, Tensor]":
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name.endswith("_T")}
        return {name: stream for name, stream in found.items() if stream is not None}


def sent(tensor: "Tensor", device: Any) -> "Tensor":
    """The tensor on a device. A GPU gets it by the way without the host waiting for it."""
    import torch

    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, .. of each span, one span after the other: int64.

    Example: ``spans([5, 0], [2, 3])`` is 5 6 0 1 2.
    """
    ends = lengths.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


class TokenStats(NamedTuple):
    """What a policy says of R tokens of a batch. Made by ``policy``; read by ``losses``.

    A tuple, because wrappers such as FSDP look for tensors in what a module's forward returns.
    """

    rows_R: "Tensor"
    """int64 [R], indices into the batch's ``_T`` streams, ascending."""
    logprobs_R: "Tensor"
    """float32 [R], with gradient when the policy is being trained."""
    entropies_R: "Tensor"
    """float32 [R] nats."""
    energies_R: "Tensor"
    """float32 [R], E = || onehot(y) - p ||^2, without gradient: see ``entropy.head``."""
    body_tokens: int
    """Tokens the transformer's layers ran on with gradient, padding included."""
    cached_tokens: int = 0
    """Tokens they ran on without gradient."""
    flops: float = 0.0
    """Floating-point operations, backward included where there is gradient; an estimate."""
    live_positions: int = 0
    """Of a local gradient: the positions that ran with gradient, without empty slots."""
    row_positions: int = 0
    """Of the same: all positions of the rows."""

    def to(self, device: Any) -> "TokenStats":
        """The same with every tensor on a device."""
        return self._replace(
            rows_R=self.rows_R.to(device),
            logprobs_R=self.logprobs_R.to(device),
            entropies_R=self.entropies_R.to(device),
            energies_R=self.energies_R.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which tokens get a policy gradient. Made by ``selection``; read by ``losses``."""

    weights_T: "Tensor"
    """float32 [T] >= 0; 0 outside pool and mask."""
    thresholds: tuple[float, ...]
    """Nats; the lowest (top rules) entropy kept in each scope group, nan where none was kept."""
    pool_tokens: int
    kept_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput:
    """One micro-batch's share of the loss. Made by ``losses.batch_loss``."""

    loss: "Tensor"
    """Scalar with gradient. Shares of micro-batches add up to the mini-batch's loss."""
    shares: "Mapping[str, Tensor]"
    """The terms of ``loss``; they add up over micro-batches as it does."""
    metrics: "Mapping[str, Metric]"


@dataclass(frozen=True, slots=True)
class Metric:
    """A mean as (sum, count), so that it adds up over micro-batches and ranks without error.

    Either may be a tensor of one number: it is read when the mean is."""

    sum: "float | Tensor"
    count: "float | Tensor"

    def __add__(self, other: "Metric") -> "Metric":
        return Metric(self.sum + other.sum, self.count + other.count)

    @property
    def mean(self) -> float:
        """sum / count; nan when nothing was counted."""
        return float(self.sum) / float(self.count) if self.count else float("nan")
