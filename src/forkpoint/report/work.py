"""What the steps cost, and what was saved: totals of the work metrics."""

from collections.abc import Sequence
from typing import Any

from forkpoint.figures.text import number, percent, visible
from forkpoint.report.data import RunData


def work_table(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """One line a run, with a dash for what it did not log; empty if no run logged anything."""
    rows = [_totals(run) for run in runs]
    return rows if any(row["known"] for row in rows) else []


def _totals(run: RunData) -> dict[str, Any]:
    body, head, flops, dense = (
        _sum(run, f"work/{name}") for name in ("body_tokens", "head_rows", "flops", "dense_flops")
    )
    memory = _most(run, "memory/peak_gb")
    device = _most(run, "memory/cuda_peak_gb")
    return {
        "label": visible(run.label),
        "known": any(value is not None for value in (body, head, flops, memory)),
        "body": _count(body),
        "head": _count(head),
        "flops": number(flops),
        "dense": number(dense),
        "saved": percent(saved_share(run)),
        "memory": ("–" if memory is None else f"{memory:.2f} GB")
        + ("" if device is None else f", CUDA {device:.2f} GB"),
    }


def saved_share(run: RunData) -> float | None:
    """1 - sum of flops / sum of dense flops, over the steps that logged both.

    Without flops: the same of body tokens, whose dense number of a step is
    ``work/body_tokens`` / (1 - ``work/tokens_saved_fraction``).
    """
    done, dense = dict(run.series("work/flops")), dict(run.series("work/dense_flops"))
    if not done.keys() & dense.keys():
        done, fractions = (
            dict(run.series(f"work/{name}")) for name in ("body_tokens", "tokens_saved_fraction")
        )
        dense = {s: done[s] / (1 - f) for s, f in fractions.items() if s in done and f < 1}
    steps = done.keys() & dense.keys()
    total = sum(dense[step] for step in steps)
    return 1 - sum(done[step] for step in steps) / total if total else None


def _sum(run: RunData, name: str) -> float | None:
    values = [value for _, value in run.series(name)]
    return sum(values) if values else None


def _most(run: RunData, name: str) -> float | None:
    return max((value for _, value in run.series(name)), default=None)


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
