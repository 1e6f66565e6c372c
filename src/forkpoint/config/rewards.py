"""What an answer is worth, and how that is found out."""

from typing import Annotated, Literal

from pydantic import Field

from forkpoint.config.stages import Stage


class VerifierConfig(Stage):
    """What every reward has: its weight in the sum and a time limit. See docs/rewards.md."""

    weight: float = 1.0
    timeout_s: float = Field(default=4.0, gt=0)
    """Per completion; the process of a verifier that hangs is killed."""
    on_timeout: Literal["wrong", "leave_out"] = "wrong"
    """A completion on which it used up its time or memory gets 0; or no reward at all."""


class TaskRewardConfig(VerifierConfig):
    """The task's own verifier (lab world, reasoning-gym)."""

    type: Literal["task"] = "task"


class MathRewardConfig(VerifierConfig):
    """Mathematical equivalence with the ``answer`` column, by math-verify (``math`` extra)."""

    type: Literal["math"]
    answer_column: str = "answer"
    """Dots walk into nested columns (``reward_model.ground_truth``)."""


class IntegerRewardConfig(VerifierConfig):
    """The last ``\\boxed{}`` as an integer: AIME, AMC, GSM8K (answers that end in ``#### 42``)."""

    type: Literal["integer"]
    answer_column: str = "answer"


class CodeRewardConfig(VerifierConfig):
    """Every test is passed by the program in the completion's last block of Python. It is run in a
    sandbox, and only with ``scoring.allow_code``."""

    type: Literal["code"]
    tests_column: str = "tests"
    """``{inputs = [..], outputs = [..], fn_name = ..}``, or the JSON text of that."""
    test_seconds: int = Field(default=6, ge=1)
    """Of the processor, per test; by the clock twice as many and one."""
    memory_gb: float = Field(default=2.0, gt=0)
    """10^9 bytes of a program's address space."""
    python: str | None = None
    """The Python that runs programs, such as ``/usr/bin/python3``, with what is installed for it;
    default: the one this one's virtual environment was made from."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Per completion, all its tests."""


class FormatRewardConfig(VerifierConfig):
    """1 if the whole completion matches a regular expression."""

    type: Literal["format"]
    pattern: str


class CustomRewardConfig(VerifierConfig):
    """A function of yours, ``f(prompts, completions, **columns) -> list[float | None]``."""

    type: Literal["custom"]
    path: str
    """``package.module:function``, importable from the working directory."""
    batch_size: int = Field(default=1, ge=1)
    """Completions in one call, for a judge that is faster with several."""


RewardConfig = Annotated[
    TaskRewardConfig
    | MathRewardConfig
    | IntegerRewardConfig
    | CodeRewardConfig
    | FormatRewardConfig
    | CustomRewardConfig,
    Field(discriminator="type"),
]


class ScoringConfig(Stage):
    """The processes that call the rewards."""

    workers: int | None = Field(default=None, ge=1)
    """How many; default: one a CPU, 8 at most, divided by the run's processes on this machine."""
    memory_gb: float = Field(default=4.0, gt=0)
    """10^9 bytes that each may take beyond what its modules do. Obeyed on Linux only."""
    allow_code: bool = False
    """Rewards of type ``code`` may run the programs that the model writes; see docs/rewards.md."""


CODE_IS_OFF = (
    "rewards.type = 'code' runs programs that the model writes on this machine, in a sandbox "
    "(docs/rewards.md says what it keeps from them and what it cannot); if that is what you want, "
    "set scoring.allow_code = true"
)


class OverlongConfig(Stage):
    """DAPO's soft overlong punishment: 0 down to -penalty over the last ``buffer`` tokens."""

    buffer: int = Field(default=0, ge=0)
    """Tokens before ``rollout.max_new_tokens`` where the punishment starts; 0: none."""
    penalty: float = Field(default=1.0, ge=0)
