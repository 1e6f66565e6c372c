"""The run directories of a page, and their small files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forkpoint.errors import RunError
from forkpoint.report.json_file import JsonObject, is_number, read_object
from forkpoint.runs import RunDirectory, read_metrics

SUBJECTS = ("metrics.jsonl", "eval/summary.json", "ablation.json")
"""What a page can be about besides an analysis."""
ANALYSES = ("summary", "dynamics", "temperature", "branching")
"""analysis/NAME.json, each written when its measurement is complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The small files of one run directory. Made by ``load_runs``."""

    label: str
    """The directory's name, or ``control``; unique on the page."""
    root: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    """Empty if nothing was trained."""
    trained: bool
    """Whether there is a metrics.jsonl."""
    summary: dict[str, Any]

    @property
    def last_step(self) -> int:
        return max((int(line["step"]) for line in self.metrics if "step" in line), default=0)

    @property
    def analysis_dir(self) -> Path:
        return self.root / "analysis"

    def analysis(self, name: str) -> JsonObject | None:
        """``analysis/NAME.json``; None if it was not made."""
        return JsonObject.read(self.analysis_dir / f"{name}.json")

    def interrupted(self, name: str) -> str | None:
        """Says so if ``analysis/NAME/`` was begun and NAME.json is not there; else None."""
        if (self.analysis_dir / f"{name}.json").exists() or not (self.analysis_dir / name).is_dir():
            return None
        return (
            f"analysis/{name}.json is not there: the measurement was interrupted. "
            "The same command goes on where it stopped."
        )

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of the lines where the metric stands and is a number."""
        return [
            (int(line["step"]), float(line[name]))
            for line in self.metrics
            if "step" in line and is_number(line.get(name))
        ]


# ---- reading ------------------------------------------------------------------------------------


def load_runs(paths: Sequence[Path]) -> list[RunData]:
    """The runs in the order given, each followed by its ``control/`` if it has one.

    Raises:
        RunError: none given, no such directory, nothing in it that a page could be about, or a
            file that is not JSON.
    """
    if not paths:
        raise RunError("a report needs at least one run directory")
    runs: list[RunData] = []
    for root in dict.fromkeys(Path(p).resolve() for p in paths):
        names = (root.name, f"{root.parent.name}/{root.name}", str(root))
        runs.append(_load_run(root, _first_free(names, runs)))
        control = root / "control"
        if RunDirectory(control).metrics_jsonl.exists():
            names = ("control", f"{runs[-1].label}/control")
            runs.append(_load_run(control, _first_free(names, runs)))
    return runs


def _first_free(names: Sequence[str], runs: Sequence[RunData]) -> str:
    taken = {run.label for run in runs}
    return next((name for name in names if name not in taken), names[-1])


def _load_run(root: Path, label: str) -> RunData:
    directory = RunDirectory(root)
    if not root.is_dir():
        raise RunError(f"{root}: no such run directory")
    analysis = directory.analysis_dir
    if not any((root / name).exists() for name in SUBJECTS) and not _was_analysed(analysis):
        begun = "; its analysis ended before anything was measured" if analysis.exists() else ""
        raise RunError(
            f"{root} holds no {', '.join(SUBJECTS)} and no analysis: there is nothing to report"
            + begun
        )
    trained = directory.metrics_jsonl.exists()
    return RunData(
        label=label,
        root=root,
        config=read_object(directory.config_json),
        environment=read_object(directory.env_json),
        metrics=read_metrics(directory.metrics_jsonl) if trained else [],
        trained=trained,
        summary=read_object(root / "summary.json"),
    )


def _was_analysed(folder: Path) -> bool:
    """Whether an analysis was finished, or interrupted when it had measured something."""
    finished = any((folder / f"{name}.json").exists() for name in ANALYSES)
    return finished or any(folder.rglob("*.parquet"))
