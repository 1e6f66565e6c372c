"""The finding at the top of the page: what was trained, and how often it is right afterwards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from forkpoint.errors import RunError
from forkpoint.report.data import RunData
from forkpoint.report.json_file import JsonObject, is_number
from forkpoint.runs.results import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of the figure. Made by ``findings``."""

    label: str
    estimate: Estimate
    series: int | None
    """Index of the run it belongs to; None before training, where no run has begun."""


def findings(runs: Sequence[RunData]) -> list[Finding]:
    """Accuracies with intervals: of the demo's summary.json, else of the runs' evaluations.

    Raises:
        RunError: summary.json lacks a number.
    """
    main = runs[0]
    if not any(key.startswith("accuracy_") for key in main.summary):
        return [finding for index, run in enumerate(runs) for finding in _evaluations(index, run)]
    control = next((i for i, run in enumerate(runs) if run.root == main.root / "control"), None)
    rest = runs[control].config if control is not None else {}
    rows = [
        ("accuracy_before", "before training", None),
        ("accuracy_after", f"trained on {selected_tokens(main.config)}", 0),
        ("accuracy_control", f"trained on {selected_tokens(rest)}", control or 1),
    ]
    return [
        Finding(label=label, estimate=_estimate(main, key), series=series)
        for key, label, series in rows
        if key in main.summary
    ]


def _estimate(run: RunData, key: str) -> Estimate:
    try:
        fields = run.summary[key]
        return Estimate(
            value=float(fields["value"]),
            low=float(fields["low"]),
            high=float(fields["high"]),
            n=int(fields["n"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        path = run.root / "summary.json"
        raise RunError(f"{path}: {key} needs the numbers value, low, high and n") from error


def _evaluations(index: int, run: RunData) -> Iterator[Finding]:
    """The first evaluation of the first run, and the last one of every run."""
    found = list(evaluated(run))
    first = found[:1] if index == 0 and len(found) > 1 else []
    for line, estimate in first + found[-1:]:
        step = int(line["step"])
        yield Finding(
            label=f"{run.label}, step {step}" if step else "before training",
            estimate=estimate,
            series=index if step else None,
        )


def evaluated(run: RunData) -> Iterator[tuple[dict[str, Any], Estimate]]:
    """(line, accuracy) of the lines of metrics.jsonl that hold an evaluation."""
    for line in run.metrics:
        value = line.get("eval/accuracy")
        if not is_number(value) or "step" not in line:
            continue
        low, high = (line.get(f"eval/accuracy_{end}") for end in ("low", "high"))
        yield (
            line,
            Estimate(
                value=float(value),
                low=float(low) if is_number(low) else float(value),
                high=float(high) if is_number(high) else float(value),
                n=int(line.get("eval/problems") or 0),
            ),
        )


# ---- words --------------------------------------------------------------------------------------


def setting(config: dict[str, Any], path: str) -> Any:
    """The value at ``section.key``; None if it is not there."""
    node: Any = config
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def selected_tokens(config: dict[str, Any]) -> str:
    """Which tokens get a policy gradient, in words."""
    rule = setting(config, "selection.rule")
    fraction = setting(config, "selection.keep_fraction")
    share = f"{100 * fraction:.3g}\u00a0%" if is_number(fraction) else "share"
    words = {
        "top": f"the {share} of tokens with the highest entropy",
        "bottom": f"the {share} of tokens with the lowest entropy",
        "random": f"a random {share} of tokens",
        "threshold": f"tokens above {setting(config, 'selection.threshold_nats')} nats",
        "all": "every token",
        None: "an unrecorded choice of tokens",
    }
    return words.get(rule, f"the {share} of tokens that {rule} chooses")


def task_words(config: dict[str, Any]) -> str:
    """The task in words."""
    kind = setting(config, "task.type")
    if kind == "lab":
        return "the laboratory world"
    if kind == "gym":
        return f"reasoning-gym {setting(config, 'task.name')}"
    return str(setting(config, "task.path") or kind or "an unrecorded task")


def what_is_here(run: RunData) -> str:
    """One sentence on what the run directory is of."""
    if run.trained:
        return what_was_trained(run)
    summary = run.analysis("summary")
    if summary is not None:
        return what_was_analysed(summary)
    model = setting(run.config, "model.path") or "an unrecorded model"
    return f"Measurements of the model {model} on {task_words(run.config)}; nothing was trained."


def what_was_analysed(summary: JsonObject) -> str:
    """One sentence: how many tokens, of whom, on what."""
    tokens, completions, prompts = (
        f"{summary.whole(name):,}" for name in ("tokens", "completions", "prompts")
    )
    source = summary.text("source")
    origin = "sampled" if source == "sampled" else f"read from {source}"
    temperature = summary.number_or_none("temperature")
    at = f" at temperature {temperature:g}" if temperature is not None else ""
    return (
        f"{tokens} tokens of {completions} completions to {prompts} prompts of "
        f"{summary.text('task')}, {origin} and scored by the model {summary.text('model')}{at}."
    )


def what_was_trained(run: RunData) -> str:
    """One sentence from config.json and the last line of metrics.jsonl."""
    config = run.config
    if not config:
        return (
            f"{run.last_step} steps are recorded; what was trained is not: config.json is missing."
        )
    steps = setting(config, "training.steps")
    made = f"{run.last_step}" if run.last_step == steps else f"{run.last_step} of {steps}"
    method = str(setting(config, "loss.preset") or "").replace("_", " ").upper()
    return (
        f"{method} on {task_words(config)}, starting from the model "
        f"{setting(config, 'model.path')}: {made} steps of "
        f"{setting(config, 'rollout.prompts_per_step')} prompts with "
        f"{setting(config, 'rollout.group_size')} answers each. "
        f"The policy gradient is taken on {selected_tokens(config)}."
    )
