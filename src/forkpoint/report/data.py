"""The run directories of a page: configuration, environment, metrics and results of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from forkpoint.config import RunConfig, load_config
from forkpoint.demo import CONTROL, RANDOM
from forkpoint.errors import RunError
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.atomic import read_object
from forkpoint.runs.directory import check_schema
from forkpoint.runs.metrics_log import MetricsLine, StepEvaluation, evaluations
from forkpoint.runs.results import AnyResult, Result, find_result, result_path
from forkpoint.runs.resume import Pieces

STORED = {"pattern": "analysis"}
"""Where a measurement keeps its completions, if the folder has another name than its result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """One run directory. Made by ``load_runs``."""

    label: str
    """The directory's name, or ``control``; unique on the page."""
    root: Path
    config: RunConfig | None
    """None without a config.json."""
    environment: dict[str, Any]
    """env.json as it stands; empty without one."""
    metrics: list[MetricsLine]
    """The lines of metrics.jsonl; empty if nothing was trained."""
    trained: bool
    """Whether there is a metrics.jsonl."""

    @property
    def last_step(self) -> int:
        return max((int(line.get("step") or 0) for line in self.metrics), default=0)

    @property
    def evaluations(self) -> list[StepEvaluation]:
        """Those in metrics.jsonl, in their order."""
        return evaluations(self.metrics)

    def result(self, model: type[AnyResult]) -> AnyResult | None:
        """``results/NAME.json``; None if it was not measured.

        Raises:
            RunError: as ``runs.results.read_result``.
        """
        return find_result(self.root, model)

    def began(self, model: type[Result]) -> bool:
        """Whether a measurement was interrupted: pieces are there, and its result is not."""
        name = Path(model.file).stem
        folders = (self.root / "pieces" / name, self.root / "completions" / STORED.get(name, name))
        begun = any(Pieces(folder).any() for folder in folders)
        return begun and not result_path(self.root, model).exists()

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of the lines where the metric stands and is a number that can be drawn: an
        axis from -1e308 to 1e308 would have no finite length."""
        return [
            (int(step), float(value))
            for line in self.metrics
            if (step := line.get("step")) is not None
            and (value := line.get(name)) is not None
            and abs(value) < 1e300
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
        main = runs[-1].label
        for name in (CONTROL, RANDOM):  # a demo's other runs
            if RunDirectory(root / name).metrics_jsonl.exists():
                runs.append(_load_run(root / name, _first_free((name, f"{main}/{name}"), runs)))
    return runs


def _first_free(names: Sequence[str], runs: Sequence[RunData]) -> str:
    taken = {run.label for run in runs}
    return next((name for name in names if name not in taken), names[-1])


def _load_run(root: Path, label: str) -> RunData:
    directory = RunDirectory(root)
    if not root.is_dir():
        raise RunError(f"{root}: no such run directory")
    check_schema(root)
    trained = directory.metrics_jsonl.exists()
    if not trained and not any((root / "results").glob("*.json")) and not _was_begun(root):
        raise RunError(f"{root} holds no metrics.jsonl and no results: there is nothing to report")
    config = directory.config_json
    return RunData(
        label=label,
        root=root,
        config=load_config(config) if config.exists() else None,
        environment=read_object(directory.env_json),
        metrics=read_metrics(directory.metrics_jsonl) if trained else [],
        trained=trained,
    )


def _was_begun(root: Path) -> bool:
    """Whether an analysis was interrupted when it had measured something."""
    folders = (root / "pieces").glob("*"), (root / "completions").glob("*")
    return any(folder.is_dir() and Pieces(folder).any() for folder in chain(*folders))


def variant_config(root: Path, label: str | None) -> RunConfig | None:
    """The configuration of a run of an ablation's variant; None where none is there."""
    for path in sorted(root.glob("*/seed_*/config.json")):
        if path.parts[-3] == label:
            return load_config(path)
    return None
