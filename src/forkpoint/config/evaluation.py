"""What is measured, and on what: held-out problems of the task, or benchmarks."""

from typing import Literal

from pydantic import Field, model_validator

from forkpoint.config.stages import Stage

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Of a benchmark: it is a folder's name, too."""


class BenchmarkConfig(Stage):
    """A benchmark that ``forkpoint eval`` measures; see docs/evaluation.md.

    What is not set is the benchmark's own, see ``forkpoint.tasks.benchmarks``.
    """

    name: str = Field(pattern=NAME)
    """``aime24``, ``math500``, .., or any other name for the rows of ``path``."""
    path: str | None = None
    """``*.jsonl``, ``*.json``, ``*.parquet``, or a hub id (needs the ``hub`` extra)."""
    subset: str | None = None
    """The configuration of a hub data set."""
    split: str | None = None
    """The same; default ``test``."""
    question_column: str | None = None
    """Default: the first known name that the rows have, such as ``problem`` or ``question``."""
    answer_column: str | None = None
    """The same, such as ``answer``; of a worked solution the last ``\\boxed{}``."""
    verifier: Literal["integer", "math", "code"] | None = None
    """Who judges the answers; of rows of yours ``math`` unless this says otherwise. ``code`` is for
    rows in LiveCodeBench's layout, and needs ``scoring.allow_code``."""
    prompt: Literal["paper", "r1", "chat"] | None = None
    """``paper``: its plain template; ``r1``: DeepSeek-R1's sentence, through the model's chat
    template; ``chat``: the question and ``instruction``, through the chat template."""
    instruction: str | None = None
    """Of ``prompt = "chat"``; default: to put the answer within ``\\boxed{}``."""
    temperature: float | None = Field(default=None, gt=0)
    max_new_tokens: int | None = Field(default=None, ge=1)
    samples: int | None = Field(default=None, ge=1)
    problems: int | None = Field(default=None, ge=1)
    """The first so many; default: all."""

    @model_validator(mode="after")
    def _check_what_is_read(self) -> "BenchmarkConfig":
        if self.path is None and (self.subset, self.split) != (None, None):
            raise ValueError(f"benchmark {self.name!r}: subset and split are read with path")
        if self.instruction is not None and self.prompt != "chat":
            raise ValueError(f"benchmark {self.name!r}: instruction is read with prompt = 'chat'")
        return self


class EvaluationConfig(Stage):
    """When and on what accuracy is measured."""

    every: int = Field(default=0, ge=0)
    """Steps; 0 = never. Runs on held-out problems of the task, and after the last step."""
    at_start: bool = True
    """Also before the first step."""
    problems: int = Field(default=200, ge=1)
    samples: int = Field(default=1, ge=1)
    seed: int = Field(default=20_000, ge=0)
    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """What ``forkpoint eval`` measures in the place of held-out problems; training does not."""
    benchmark_dir: str | None = None
    """A folder with files of benchmarks, such as ``aime24.jsonl``, in the place of the hub."""

    @model_validator(mode="after")
    def _check_names(self) -> "EvaluationConfig":
        names = [benchmark.name for benchmark in self.benchmarks]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two benchmarks are called {twice!r}: give one another name")
        return self
