"""The section on an ablation: its variants as a table, their differences and their curves."""

from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from forkpoint.figures import ablation as figures
from forkpoint.figures.render import svg_for_page
from forkpoint.figures.text import ends, minus, number, percent, visible
from forkpoint.report.data import RunData
from forkpoint.report.finding import series_class
from forkpoint.runs.ablation import Ablation, Arm

if TYPE_CHECKING:
    import altair as alt


def ablation_section(run: RunData) -> dict[str, Any] | None:
    """Table and figures; None if the run is no ablation, or nothing of it is finished."""
    found = run.result(Ablation)
    if found is None or not found.arms:
        return None
    shared = _shared_settings(found)
    labels = {arm.label for arm in found.arms}
    estimates = [e for arm in found.arms for e in (arm.accuracy, arm.difference) if e is not None]
    return {
        "reference": visible(found.reference) if found.reference else None,
        "run": visible(
            f"{run.root.name}/{found.arms[0].label}/seed_{[*found.arms[0].seeds, 0][0]}"
        ),
        "fewest": min(estimate.n for estimate in estimates),
        "dashes": any(estimate.interval is None for estimate in estimates),
        "settings": [visible(setting) for setting in shared],
        "unfinished": [visible(label) for label in found.variants if label not in labels],
        "rows": [_row(found, index, shared) for index in range(len(found.arms))],
        "measured": any(arm.energy_share is not None for arm in found.arms),
        "figures": [
            ("Difference", "paired by seed", _drawn(figures.differences(found))),
            (
                "Entropy",
                "nats, mean of the tokens of a step",
                _drawn(figures.entropy_by_steps(found)),
            ),
            (
                "Accuracy by steps",
                "mean over seeds, band 95\u00a0%",
                _drawn(figures.accuracy_by_steps(found)),
            ),
            (
                "Accuracy by work",
                "mean over seeds, band 95\u00a0%",
                _drawn(figures.accuracy_by_operations(found)),
            ),
        ],
    }


def _drawn(chart: "alt.LayerChart | None") -> Markup | None:
    return svg_for_page(chart, "named") if chart is not None else None


def _shared_settings(found: Ablation) -> list[str]:
    """What every variant sets: no difference between them. With one variant nothing is shared."""
    if len(found.arms) < 2:
        return []
    others = [set(arm.settings) for arm in found.arms[1:]]
    return [s for s in found.arms[0].settings if all(s in other for other in others)]


def _row(found: Ablation, index: int, shared: list[str]) -> dict[str, Any]:
    arm = found.arms[index]
    between, difference = arm.accuracy.interval, arm.difference
    last = arm.curve[-1] if arm.curve else None
    planned = f" of {len(found.seeds)}" if found.seeds else ""
    return {
        "label": visible(arm.label),
        "css": series_class(index),
        "settings": [visible(s) for s in arm.settings if s not in shared],
        "seeds": f"{arm.accuracy.n}{planned}",
        "accuracy": percent(arm.accuracy.value),
        "ends": ends(*between) if between else "–",
        "difference": _difference(found, arm),
        "difference_ends": _ends(difference.interval) if difference else "",
        "length": number(last.length_mean if last else None),
        "truncated": percent(last.truncated_fraction if last else None),
        "kept": percent(arm.kept_fraction),
        "energy": percent(arm.energy_share),
        "operations": _relative_operations(arm, found.arm(found.reference)),
    }


def _difference(found: Ablation, arm: Arm) -> str:
    if arm.label == found.reference:
        return "reference"
    return "–" if arm.difference is None else figures.points(arm.difference.value)


def _ends(interval: tuple[float, float] | None) -> str:
    """Of a difference, in percentage points: ``[−0.4, +3.1]``."""
    return f"[{', '.join(map(figures.points, interval))}]" if interval else "–"


def _relative_operations(arm: Arm, reference: Arm | None) -> str:
    """Of all steps, in units of the reference's."""
    if reference is None or not (arm.curve and reference.curve):
        return "–"
    whole = reference.curve[-1].operations
    return minus(f"{arm.curve[-1].operations / whole:.2f}") if whole > 0 else "–"
