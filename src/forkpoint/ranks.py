"""The processes of a run: one, or those that torchrun started, and what they tell each other.

All of them run the same program. What costs is divided up: prompts are sampled and scored, and
sequences go through the model, on one process each. What decides is not: every process holds the
whole batch of a step and makes the same selection, denominators and plan from the same numbers, so
a step on N processes is the step on one, up to the order in which floats are added.

``forkpoint train RECIPE`` is one process; ``torchrun --nproc-per-node N -m forkpoint train RECIPE``
is N.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from forkpoint.errors import ForkpointError, RunError

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")


class Lost(RunError):
    """Another process has ended, or does not answer: nothing can be done together any more."""


TOLD = "told by another process"
"""A note on an error: there is no need to print it once more."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    group: Any = None
    """What torch calls the line over which they speak; None: the first one."""
    patience: timedelta | None = None
    """The most that one waits for another; None: torch's."""

    @property
    def first(self) -> bool:
        """Whether this process owns the run directory and speaks to the user."""
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, in the order of ranks.

        Raises:
            Lost: another process has ended, or does not answer.
        """
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        _together(lambda: dist.all_gather_object(values, value, group=self.group))
        return values

    def second_line(self) -> "Ranks":
        """The same processes on a line of its own, for a second thread of each. To be called in all
        of them together."""
        if self.size == 1:
            return self
        import torch.distributed as dist

        return replace(self, group=dist.new_group(backend="gloo", timeout=self.patience))

    def any(self, flag: bool) -> bool:
        """Whether it is true in some process."""
        return any(self.gather(flag))

    def add(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """The tensor, in place, added up over all processes.

        Raises:
            Lost: another process has ended, or does not answer.
        """
        if self.size > 1:
            import torch.distributed as dist

            _together(lambda: dist.all_reduce(tensor, group=self.group))
        return tensor

    def share(self, costs: Sequence[float]) -> list[int | None]:
        """Which of some tasks this process does; as many entries in every process.

        The longest goes first, each to the process with fewest tasks so far, and of those to the
        one with least to do. None: nothing is left for this process, but the others wait for it.

        Args:
            costs: of each task, in any unit; the same in every process.
        """
        if self.size == 1:
            return list(range(len(costs)))
        loads, mine = [0.0] * self.size, [[] for _ in range(self.size)]
        for task in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            least = min(range(self.size), key=lambda r: (len(mine[r]), loads[r]))
            mine[least].append(task)
            loads[least] += costs[task]
        most = max(map(len, mine))
        return [*mine[self.rank], *[None] * (most - len(mine[self.rank]))]

    def agree(self, make: Callable[[], Value]) -> list[Value]:
        """What ``make`` gives in every process; if it raises in one, that is raised in all.

        Raises:
            ForkpointError: of the first process in which there was one, also where another was
                raised: all must go on in the same way.
        """
        value, error = None, None
        try:
            value = make()
        except ForkpointError as raised:
            if self.size == 1:
                raise
            error = raised
        outcomes = self.gather((value, None if error is None else (type(error), str(error))))
        faults = [(rank, fault) for rank, (_, fault) in enumerate(outcomes) if fault is not None]
        if faults:
            rank, (kind, text) = faults[0]
            if rank == self.rank and error is not None:
                raise error
            elsewhere = kind(text)
            elsewhere.add_note(TOLD)
            raise elsewhere
        return [value for value, _ in outcomes]  # pyright: ignore[reportReturnType]

    def by_first(self, make: Callable[[], Value]) -> Value:
        """What ``make`` gives in the first process, the only one that runs it.

        Raises:
            ForkpointError: in all processes, if the first one raises it.
        """
        return self.agree(lambda: make() if self.first else None)[0]  # pyright: ignore[reportReturnType]


ALONE = Ranks()


def join(timeout_minutes: float) -> Ranks:
    """Meet the processes that torchrun started; alone, do nothing.

    Args:
        timeout_minutes: the most one process waits for another, as while that one is sampling.

    Raises:
        Lost: they do not meet.
    """
    if world_size() == 1:
        return ALONE
    import torch
    import torch.distributed as dist

    patience = timedelta(minutes=timeout_minutes)
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank())
        _together(
            lambda: dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=patience
            )
        )
        atexit.register(leave)
    return Ranks(dist.get_rank(), dist.get_world_size(), patience=patience)


def leave() -> None:
    """End what ``join`` began."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks() -> bool:
    """Whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """The number of this process on its machine, and of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """The processes of the run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def lost(error: BaseException) -> Lost | None:
    """What an error of torch's collectives, inside FSDP too, means; None of another error."""
    import torch.distributed as dist

    text = str(error).strip().split("\n")[0]
    if not isinstance(error, RuntimeError | ValueError):
        return None
    if not (isinstance(error, dist.DistError) or "gloo" in text or "process group" in text.lower()):
        return None
    return Lost(
        "the processes of this run have lost each other: one has ended (its message says why) "
        f"or did not answer in time ({text}); go on with --resume"
    )


def _together(collective: Callable[[], Any]) -> None:
    """
    Raises:
        Lost: it failed, because another process has ended or does not answer.
    """
    try:
        collective()
    except (RuntimeError, ValueError) as error:
        raise (lost(error) or error) from error
