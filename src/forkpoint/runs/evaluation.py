"""The results of evaluations: held-out problems, benchmarks, and two evaluations compared.

``samples`` answers were drawn to every problem. A problem's ``right`` is its row of verdicts, so
every number here can be computed again from the file.
"""

from typing import ClassVar

from pydantic import Field, model_validator

from forkpoint.runs.estimates import Estimate, Frozen, Result


class Answered(Frozen):
    """One problem, and the verdict of each of its answers."""

    id: str
    digest: str
    """Of prompt and right answer: where it is equal, the problem is the same."""
    right: tuple[bool, ...]
    answers: tuple[int | None, ...] = ()
    """Which answers are the same: 0 the right ones, 1, 2, .. groups of equal wrong ones, None: no
    answer. Empty where nobody compared them."""


class Measured(Frozen):
    """The numbers of one set of problems. What older files do not have is None or empty."""

    temperature: float
    samples: int
    max_new_tokens: int | None = None
    accuracy: Estimate
    """avg@n: over problems, the share of right answers, those whose verdict is 1 or more. The
    interval says how much other problems like these would change it, draws included."""
    sampling_error: float | None = None
    """The standard error of ``accuracy`` that comes from drawing ``samples`` answers to these very
    problems. None with one sample."""
    pass_at: dict[int, Estimate] = Field(default_factory=dict)
    """k -> the chance that one of k answers is right, unbiased."""
    length_mean: float
    truncated_fraction: float | None = None
    """Of the answers, those cut by the token budget."""
    unjudged: int | None = None
    """Answers that no verifier could judge; they count as wrong."""
    problems: tuple[Answered, ...] = ()

    @model_validator(mode="after")
    def _check_matrix(self) -> "Measured":
        rows = {len(problem.right) for problem in self.problems}
        if self.problems and (rows != {self.samples} or len(self.problems) != self.accuracy.n):
            raise ValueError(
                f"{len(self.problems)} problems with {sorted(rows)} answers, where there should be "
                f"{self.accuracy.n} with {self.samples}"
            )
        return self


class Evaluation(Measured, Result):
    """Held-out problems of a task. Made by ``forkpoint eval``."""

    file: ClassVar[str] = "evaluation.json"
    model: str
    task: str
    """Where the problems are from."""
    verifier: str | None = None
    """The reward that says whether an answer is right, as JSON."""
    seed: int


class Asked(Frozen):
    """What a benchmark asks, how, and who judges."""

    name: str
    source: str
    """The file or the hub data set."""
    verifier: str
    prompt: str
    """With ``{question}`` in the place of the question."""
    chat: bool
    """Whether the prompt went through the model's chat template."""


class BenchmarkScore(Measured, Asked):
    """One benchmark."""

    majority_at: dict[int, Estimate] = Field(default_factory=dict)
    """k -> the chance that the most frequent of k answers is right; ties are broken at random."""


class Benchmarks(Result):
    """What ``forkpoint eval --benchmark`` measured."""

    file: ClassVar[str] = "benchmarks.json"
    model: str
    seed: int
    benchmarks: tuple[BenchmarkScore, ...]


class Difference(Frozen):
    """Two evaluations on the same problems."""

    name: str
    """Of the benchmark or the task."""
    samples: int
    first: float
    """Accuracy."""
    second: float
    difference: Estimate
    """second - first: mean over problems of the difference of their shares."""
    sampling_error: float | None
    """The standard error of the difference from the draws alone, taken as independent. None with
    one sample."""


class Comparison(Result):
    """Two evaluations, problem by problem. Made by ``forkpoint eval --compare``."""

    file: ClassVar[str] = "comparison.json"
    first: str
    """The run directory."""
    second: str
    first_model: str
    second_model: str
    differences: tuple[Difference, ...]
