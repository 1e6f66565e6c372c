"""The results of a run directory: what was measured, one frozen model for each ``results/*.json``.

Field names are an API. Unless a field says otherwise, entropies are in nats, lengths are in tokens
per completion, ``samples`` are completions per problem, and what is not known is None.
"""

import json
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from forkpoint.errors import RunError
from forkpoint.runs.atomic import first_fault, write_json
from forkpoint.runs.estimates import SCHEMA_VERSION, AnyResult, Estimate, Frozen, Result
from forkpoint.runs.evaluation import Evaluation as Evaluation


class Demo(Result):
    """What ``forkpoint demo`` found: accuracies on the same held-out problems."""

    file: ClassVar[str] = "demo.json"
    accuracy_before: Estimate
    """Of the model before training."""
    accuracy_after: Estimate
    """Of the run on the tokens of highest entropy."""
    accuracy_control: Estimate
    """Of the run on the other tokens."""
    accuracy_random: Estimate | None = None
    """Of the run on as many tokens as the forks, drawn at random; None in older demos."""


class Histogram(Frozen):
    """Counts of tokens between edges; a bin holds its lower edge."""

    edges: tuple[float, ...] = Field(min_length=2)
    """Nats; one more than ``counts``."""
    counts: tuple[int, ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> "Histogram":
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.edges)} edges and {len(self.counts)} counts")
        return self


class EntropyBin(Frozen):
    """The mean entropy of positions, or of completion lengths, from ``first`` to ``last``."""

    first: int
    last: int
    count: int
    """Tokens at these positions, or completions of these lengths."""
    mean_entropy: float | None
    """Over tokens; None if there is none."""


class CorrectnessGroup(Frozen):
    """The entropy of correct or of wrong completions."""

    label: Literal["correct", "wrong"]
    """Correct: the reward is 1 or more. Completions without a reward are in neither group."""
    completions: int
    tokens: int
    mean_entropy: Estimate
    """Over tokens; the interval resamples prompts."""


class ForkTruth(Frozen):
    """Measured entropies against the laboratory's truth, up to each first illegal word."""

    tokens: int
    fork_share: float
    """Of the tokens, those where more than one word could stand: the precision of chance."""
    precision: float | None
    """Of the top ``keep_fraction`` of tokens by entropy, those that are forks. None: no fork."""
    recall: float | None
    """Of the forks, those among these tokens."""
    average_precision: float | None
    """Over all cuts."""
    fork_entropy_true: float | None
    """Mean over forks, of the demonstration policy. None, as ``entropy_error``, unless the
    temperature is 1: the truth of no other is known."""
    fork_entropy_measured: float | None
    forced_entropy_measured: float | None
    """Mean over the other tokens, whose true entropy is 0."""
    entropy_error: float | None
    """Mean of |measured - true|."""


class Pattern(Result):
    """Where the entropy of a model's completions is: what ``forkpoint analyze`` found."""

    file: ClassVar[str] = "pattern.json"
    model: str
    source: str
    """``sampled``, or the path that the completions were read from; then ``task`` may be None."""
    task: str | None
    temperature: float
    seed: int
    tokens: int
    completions: int
    prompts: int
    keep_fraction: float
    """The share of tokens of highest entropy that counts as forks."""
    mean_entropy: float
    share_below_0_01: float
    """Of the tokens, those with an entropy below 0.01 nats."""
    entropy_threshold: float
    """The k-th highest entropy, k = ceil(keep_fraction x tokens)."""
    kept_fraction: float
    """Of the tokens, those that reach the threshold: more than ``keep_fraction`` under ties."""
    entropy_share_of_top: float
    """Of the sum of all entropies, what the k highest hold."""
    percentiles: dict[int, float]
    """p -> the smallest x such that p % of the tokens have an entropy of at most x."""
    histogram: Histogram
    by_position: tuple[EntropyBin, ...]
    """By a token's place in its completion, from 0."""
    by_length: tuple[EntropyBin, ...]
    """By the completion's length."""
    by_correctness: tuple[CorrectnessGroup, ...]
    accuracy: Estimate | None
    """As ``Evaluation`` counts it; None if no completion has a reward."""
    words_min_count: int
    """words.parquet lists the ``words_listed`` token texts that occur more often than this."""
    words_listed: int
    lab: ForkTruth | None
    """None unless the completions are games of the laboratory."""


class CheckpointEntropy(Frozen):
    """What one checkpoint says of the tokens that all of them scored."""

    name: str
    step: int | None
    """Of training: 0 for the base, None if the name does not say."""
    path: str
    overlap_with_base: Estimate | None
    """The share of its top tokens that are the base's too; chance gives ``keep_fraction``."""
    overlap_with_final: Estimate | None
    mean_entropy: Estimate
    percentiles: dict[int, Estimate]
    """Of the entropies, linearly interpolated; minimum and maximum have no interval."""


class EntropyChange(Frozen):
    """Final minus base entropy, of the tokens in one bin of base entropy."""

    from_percentile: float
    """Of base entropy."""
    to_percentile: float
    lowest_base_entropy: float
    highest_base_entropy: float
    tokens: int
    change: Estimate
    """Mean over the tokens."""


class Dynamics(Result):
    """The entropies of the same tokens under the base and every checkpoint."""

    file: ClassVar[str] = "dynamics.json"
    source: str
    """Where the completions come from, for people."""
    task: str | None
    temperature: float
    seed: int
    keep_fraction: float
    """The share of tokens of highest entropy whose overlap is measured."""
    tokens: int
    completions: int
    prompts: int
    checkpoints: tuple[CheckpointEntropy, ...] = Field(min_length=1)
    """The base first, the final policy last."""
    change_by_bin: tuple[EntropyChange, ...]
    """By ascending base entropy, 5 % of the tokens each."""


class TemperaturePoint(Frozen):
    """The accuracy at one pair of temperatures."""

    temperature: float
    """Of the part that is varied; 0 is greedy."""
    accuracy: Estimate
    difference: Estimate | None
    """To plain sampling at temperature 1, paired by problem; None at that very point."""
    length_mean: float
    truncated_fraction: float
    """Of the completions, those cut by the token budget."""


class TemperatureSweep(Frozen):
    """One part at each temperature, the other at 1."""

    varied: Literal["forks", "rest"]
    points: tuple[TemperaturePoint, ...]
    """By ascending temperature."""


class Temperature(Result):
    """Accuracy with forks and the rest decoded at different temperatures."""

    file: ClassVar[str] = "temperature.json"
    model: str
    task: str
    entropy_threshold: float
    """A token whose position has more entropy, at temperature 1, is a fork."""
    threshold_percentile: float | None
    """Of the entropies at temperature 1; None if the threshold was given as a number."""
    threshold_source: Literal["given", "pattern.json", "sampled"]
    """``sampled``: measured on the completions at temperature 1."""
    share_above: float
    """Of the tokens sampled at temperature 1, those above the threshold."""
    problems: int
    samples: int
    max_new_tokens: int
    seed: int
    sweeps: tuple[TemperatureSweep, ...]


class Replacement(Frozen):
    """One alternative at one measured position."""

    prompt_id: str
    sample: int
    position: int
    kind: Literal["high", "low"]
    """Whether the position is among the top tokens by entropy."""
    entropy: float
    token: str
    token_id: int
    alternative: str
    alternative_id: int
    alternative_logprob: float
    """Nats, under the distribution that the token was drawn from."""
    alternative_weight: float
    """The alternatives' probabilities at this position, divided by their sum."""
    value_kept: float
    """Mean reward of the continuations of the token that was sampled."""
    value_alternative: float
    squared_gap: float
    """Unbiased estimate of the squared difference of the two values; may be negative."""
    continuations_kept: int
    continuations_alternative: int


class GapGroup(Frozen):
    """The mean value gaps of one kind of position."""

    positions: int
    gap: Estimate | None
    """Absolute difference, which is biased upwards; None, as the next, without a position."""
    squared_gap: Estimate | None
    """Unbiased."""
    resampled_squared_gap: Estimate | None
    """Expected squared move of the value when the model draws this token once more."""


class Branching(Result):
    """How far the expected reward moves when a token is replaced."""

    file: ClassVar[str] = "branching.json"
    model: str
    task: str
    temperature: float
    seed: int
    keep_fraction: float
    """The share of tokens of highest entropy that counts as high."""
    budget_tokens: int
    spent_tokens: int
    continuations: int
    """Endings drawn from each token."""
    alternatives: int
    """Tokens tried at each position besides the sampled one."""
    prompts: int
    pairs_possible: int
    """Completions with a position of either kind."""
    pairs_left_out: int
    """Of those sampled: too few rewards, or no alternative."""
    replacements: tuple[Replacement, ...]
    high: GapGroup
    low: GapGroup
    difference: Estimate | None
    """Of the mean squared gaps, high minus low."""
    resampled_difference: Estimate | None
    """The same of the resampled squared gaps."""


# ---- reading and writing -------------------------------------------------------------------------


def result_path(root: Path, model: type[Result]) -> Path:
    """Where a run directory has the results of this kind."""
    return root / "results" / model.file


def write_result(root: Path, result: Result) -> Path:
    """Write a result into a run directory, whole or not at all, and return its path.

    Raises:
        RunError: the disk is full.
    """
    path = result_path(root, type(result))
    write_json(path, result.model_dump())
    return path


def read_result(path: Path, model: type[AnyResult]) -> AnyResult:
    """The result in a file.

    Raises:
        RunError: the file cannot be read, is of another schema version, or is not such a result.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    version = stored.get("schema_version", "none") if isinstance(stored, dict) else SCHEMA_VERSION
    if version != SCHEMA_VERSION:
        raise RunError(
            f"{path} has schema version {version}, and this forkpoint reads {SCHEMA_VERSION}: "
            "read it with the version that wrote it, or measure it again"
        )
    try:
        return model.model_validate(stored)
    except ValidationError as error:
        raise RunError(f"{path} is not a result of forkpoint: {first_fault(error)}") from error


def find_result(root: Path, model: type[AnyResult]) -> AnyResult | None:
    """The result of a run directory; None if it was not measured. Raises as ``read_result``."""
    path = result_path(root, model)
    return read_result(path, model) if path.exists() else None
