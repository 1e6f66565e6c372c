"""Where the benchmark runs: its clock, its memory, its rate of matrix products."""

import gc
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from benchmarks.memory import reset_peak, resident_gb


class Device:
    """A CUDA device or the CPU, with the sizes that suit it."""

    def __init__(self, name: str, *, tiny: bool) -> None:
        """
        Args:
            name: ``cuda`` or ``cpu``.
            tiny: everything at toy sizes, to try the benchmark itself.
        """
        self.name = name
        self.tiny = tiny
        self.is_cuda = name == "cuda"

    def finish(self) -> None:
        """Wait until all that was launched is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        """The median time of ``repeats`` calls."""
        found = []
        for _ in range(repeats):
            self.finish()
            started = time.perf_counter()
            call()
            self.finish()
            found.append(time.perf_counter() - started)
        return statistics.median(found)

    def reset_peak(self) -> None:
        """Forget the peak of memory so far."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak()

    def peak_gb(self) -> float:
        """The most memory in use since ``reset_peak``, in 10^9 bytes: allocated by torch on a CUDA
        device, of the whole process on a CPU."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated() / 1e9
        return resident_gb("VmHWM")

    def used_gb(self) -> float:
        """The same kind of memory, now."""
        return torch.cuda.memory_allocated() / 1e9 if self.is_cuda else resident_gb()

    def free_gb(self) -> float:
        """Memory of the device that nothing holds; a CPU is not asked."""
        return torch.cuda.mem_get_info()[0] / 1e9 if self.is_cuda else float("inf")

    def release(self) -> None:
        """Give back what no longer has an owner."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    @cached_property
    def rates(self) -> dict[str, float]:
        """10^12 floating-point operations a second of square matrix products, by number format."""
        return {
            "bfloat16": self._rate(torch.bfloat16, "highest"),
            "float32": self._rate(torch.float32, "highest"),
            "tf32": self._rate(torch.float32, "high"),
        }

    def _rate(self, dtype: torch.dtype, precision: str) -> float:
        size = 256 if self.tiny else 8192
        a, b = (torch.randn(size, size, device=self.name, dtype=dtype) for _ in range(2))
        torch.set_float32_matmul_precision(precision)
        try:
            self.seconds(lambda: a @ b, 2)  # the first calls load what they need
            return 2 * size**3 / self.seconds(lambda: a @ b, 5) / 1e12
        finally:
            torch.set_float32_matmul_precision("highest")
