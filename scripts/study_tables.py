"""The tables of the laboratory's study in EXPERIMENTS.md, of docs/results/ablation_lab.json:
``python scripts/study_tables.py`` writes them anew, between the lines that mark them."""

import json
import re
from pathlib import Path
from statistics import fmean
from typing import Any

from forkpoint.ablation.compare import over_seeds

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results" / "ablation_lab.json", ROOT / "EXPERIMENTS.md"
MARKED = re.compile(r"(<!-- study: (\w+) against (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
"""The place of a table: a cell, and the variant that the others are compared with."""
COLUMNS = (
    *("variant", "seeds", "after {steps} steps", "at the end", "against `{reference}`"),
    *("energy", "entropy", "truncated", "operations", "hours"),
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
OTHER_HANDS = "top20_"
"""How the names begin of variants of ``top20``, which are compared with it alone."""


def main() -> None:
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def with_tables(page: str) -> str:
    """The page with the tables of the runs that are recorded now."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    return MARKED.sub(lambda m: f"{m[1]}\n{table(found, m[2], m[3])}\n{m[4]}", page)


def table(found: dict[str, Any], cell: str, reference: str) -> str:
    """Markdown: variants of a cell in the order of their recipe, accuracies in per cent, entropy in
    nats, operations over those of ``reference``, hours of all seeds' steps, one thread
    each, without evaluations.

    Args:
        found: docs/results/ablation_lab.json.
        reference: the variant whose accuracy is subtracted, seed by seed.
    """
    rows = {row["variant"]: row for row in found["variants"] if row["cell"] == cell}
    runs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in rows}
    for run in found["runs"]:
        if run["cell"] == cell:
            runs[run["variant"]][run["seed"]] = run
    lines, steps = [], ""
    for name, row in rows.items():
        if name != reference and name.startswith(OTHER_HANDS) != (reference == "top20"):
            continue
        curves = list(zip(*(run["curve"][1:] for run in runs[name].values()), strict=True))
        steps = " / ".join(str(at[0][0]) for at in curves)
        cells = [
            f"`{name}`",
            str(row["seeds"]),
            " / ".join(f"{100 * fmean(accuracy for _, accuracy in at):.1f}" for at in curves),
            f"{100 * row['mean']:.1f}{interval(row['low'], row['high'])}",
            "" if name == reference else difference(runs[name], runs[reference]),
            f"{100 * row['energy_share']:.1f} %",
            f"{row['entropy_last']:.3f}",
            f"{100 * row['truncated_last']:.1f} %",
            f"{row['operations'] / rows[reference]['operations']:.2f}",
            f"{row['hours_of_all_seeds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |\n")
    return HEAD.format(reference=reference, steps=steps) + "".join(lines)


def difference(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> str:
    """Of the accuracies at the end, paired by seed."""
    pairs = [one[s]["curve"][-1][1] - other[s]["curve"][-1][1] for s in one if s in other]
    mean = over_seeds(pairs)
    return f"{100 * mean.value:+.1f}{interval(mean.low, mean.high)}"


def interval(low: float | None, high: float | None) -> str:
    """Of accuracies, in per cent; nothing where one seed has none."""
    return "" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
