"""The metrics of a step, added up where they are made and read once."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from forkpoint.policy import PolicyModule
from forkpoint.policy.flops import Work
from forkpoint.ranks import ALONE
from forkpoint.types import Metric


class Meter:
    """Collects (sum, count) pairs, which may be tensors on a device."""

    def __init__(self, *policies: PolicyModule) -> None:
        """
        Args:
            policies: whose work from now on is part of the metrics.
        """
        self._means: defaultdict[str, list[Metric]] = defaultdict(list)
        self.totals: defaultdict[str, float] = defaultdict(float)
        """Quantities whose sum is wanted, the same in every process."""
        self._policies, self._work = policies, Work()
        self._ranks = policies[0].ranks if policies else ALONE
        for policy in policies:
            policy.take_work()

    def add(self, name: str, metric: Metric) -> None:
        """A part of a quantity whose mean is wanted."""
        self._means[name].append(metric)

    def means(self) -> dict[str, float]:
        """Every metric, over all processes, to be called once a step: this waits for the device."""
        parts = [metric for metrics in self._means.values() for metric in metrics]
        numbers = iter(_read(number for part in parts for number in (part.sum, part.count)))
        nothing = Metric(0.0, 0)
        here = {
            name: sum((Metric(next(numbers), next(numbers)) for _ in metrics), nothing)
            for name, metrics in self._means.items()
        }
        self._work = sum((policy.take_work() for policy in self._policies), self._work)
        everywhere = self._ranks.gather((here, self._work))
        names = dict.fromkeys(name for found, _ in everywhere for name in found)
        means = {
            name: sum((found.get(name, nothing) for found, _ in everywhere), nothing).mean
            for name in names
        }
        work = sum((one for _, one in everywhere), Work())
        return means | self.totals | work.metrics()


def _read(numbers: Iterable[float | Tensor]) -> list[float]:
    """Numbers of the host and of a device, as numbers of the host."""
    held = list(numbers)
    tensors = [number.double() for number in held if isinstance(number, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(number, Tensor) else number for number in held]
