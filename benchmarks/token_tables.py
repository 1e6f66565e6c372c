"""Tables of many tokens: seconds and peak memory of summing up stored completions.

    python -m benchmarks.token_tables --tokens 2000000 20000000

Files of so many made-up tokens are written (words by Zipf's law, five alternatives a token), then
summed up by a process of its own each: quantiles, words, by position, correctness and length, as
``forkpoint analyze`` does when the model is done. Whole rows are read once, too, as the report and
re-scoring do.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from forkpoint.analysis.summary import SummarySettings, summarise
from forkpoint.config import RunConfig
from forkpoint.runs.completions import part_files, read_completions
from tests.stored import random_store

LENGTH = 1000
SIZE = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2_000_000, 20_000_000])
    options = parser.parse_args()
    print(f"completions of {LENGTH} tokens, {SIZE} a prompt; peak memory of a process each")
    for tokens in options.tokens:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            ways = {"write": _write, "sum up": _sum_up, "read rows": _read_rows}
            for name, run in ways.items():
                seconds, peak = _measured(run, root, tokens)
                print(f"{tokens:>12,} tokens  {name:<10}{seconds:8.1f} s  {peak:6.2f} GB")
            size = sum(path.stat().st_size for path in root.rglob("*.parquet"))
            print(f"{tokens:>12,} tokens  {size / tokens:.1f} bytes a token on disk")


def _write(root: Path, tokens: int) -> None:
    random_store(root, groups=tokens // (SIZE * LENGTH), size=SIZE, length=LENGTH)


def _sum_up(root: Path, tokens: int) -> None:
    described = {
        "source": "sampled",
        "config": {**RunConfig().model_dump(mode="json"), "task": {"type": "gym", "name": "words"}},
    }
    pattern = summarise(_paths(root), root / "words.parquet", described, SummarySettings())
    assert pattern.tokens == tokens


def _read_rows(root: Path, tokens: int) -> None:
    assert sum(len(row.completion) for row in read_completions(_paths(root))) == tokens


def _paths(root: Path) -> list[Path]:
    return part_files(root / "completions" / "analysis")


def _measured(run: Callable[[Path, int], None], root: Path, tokens: int) -> tuple[float, float]:
    """Seconds and 10^9 bytes of a call in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(run, root, tokens, sender))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{run.__name__} failed")
    return receiver.recv()


def _child(run: Callable[[Path, int], None], root: Path, tokens: int, sender: object) -> None:
    started = time.perf_counter()
    run(root, tokens)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sender.send((seconds, peak))  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    main()
