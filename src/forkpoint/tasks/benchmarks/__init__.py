"""Benchmarks: public sets of problems, as data, from the hub or from files in their layouts."""

from forkpoint.tasks.benchmarks.open import OpenBenchmark, open_benchmark
from forkpoint.tasks.benchmarks.table import BENCHMARKS, Benchmark, HubSet

__all__ = ["BENCHMARKS", "Benchmark", "HubSet", "OpenBenchmark", "open_benchmark"]
