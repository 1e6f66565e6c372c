"""The finding at the top of the page: what was trained, and how often it is right afterwards."""

from collections.abc import Iterator, Sequence

from forkpoint.config import RunConfig
from forkpoint.demo import CONTROL, RANDOM
from forkpoint.figures.text import visible
from forkpoint.report.data import RunData, variant_config
from forkpoint.report.intervals import Row
from forkpoint.runs.ablation import Ablation
from forkpoint.runs.results import Demo, Pattern
from forkpoint.selection.names import reads_fraction


def findings(runs: Sequence[RunData]) -> list[Row]:
    """Accuracies with intervals: what an ablation or the demo found, else the runs' evaluations.

    A row has the colour of its run; before training no run has begun.
    """
    main = runs[0]
    ablation = main.result(Ablation)
    if ablation is not None:
        return [
            Row(visible(arm.label), arm.accuracy, series_class(index))
            for index, arm in enumerate(ablation.arms)
        ]
    demo = main.result(Demo)
    if demo is None:
        return [row for index, run in enumerate(runs) for row in _evaluations(index, run)]
    rows = [Row("before training", demo.accuracy_before, "before")]
    for position, (folder, accuracy) in enumerate(
        (
            ("", demo.accuracy_after),
            (CONTROL, demo.accuracy_control),
            (RANDOM, demo.accuracy_random),
        )
    ):
        if accuracy is not None:
            index = next((i for i, r in enumerate(runs) if r.root == main.root / folder), None)
            config = None if index is None else runs[index].config
            colour = series_class(position if index is None else index)
            rows.append(Row(visible(f"trained on {selected_tokens(config)}"), accuracy, colour))
    return rows


def series_class(index: int) -> str:
    """The class of a run's colour."""
    return f"s{index % 6}"


def _evaluations(index: int, run: RunData) -> Iterator[Row]:
    """The first evaluation of the first run, and the last one of every run."""
    found = run.evaluations
    first = found[:1] if index == 0 and len(found) > 1 else []
    for one in first + found[-1:]:
        label = f"{run.label}, step {one.step}" if one.step else "before training"
        yield Row(visible(label), one.accuracy, series_class(index) if one.step else "before")


# ---- words --------------------------------------------------------------------------------------


def selected_tokens(config: RunConfig | None) -> str:
    """Which tokens get a policy gradient, in words."""
    if config is None:
        return "an unrecorded choice of tokens"
    rule, share = config.selection.rule, f"{100 * config.selection.keep_fraction:.3g}\u00a0%"
    words = {
        "top": f"the {share} of tokens with the highest entropy",
        "bottom": f"the {share} of tokens with the lowest entropy",
        "random": f"a random {share} of tokens",
        "threshold": f"tokens above {config.selection.threshold_nats} nats",
        "all": "every token",
    }
    of_rule = f"the {share} of tokens that {rule} chooses"
    return words.get(rule, of_rule if reads_fraction(rule) else f"the tokens that {rule} keeps")


def task_words(config: RunConfig | None) -> str:
    """The task in words."""
    if config is None:
        return "an unrecorded task"
    task = config.task
    if task.type == "gym":
        return f"reasoning-gym {task.name}"
    return f"the laboratory's {task.world}" if task.type == "lab" else task.path


def what_is_here(run: RunData) -> str:
    """One sentence on what the run directory is of."""
    if run.trained:
        return what_was_trained(run)
    ablation = run.result(Ablation)
    if ablation is not None:
        return what_was_compared(ablation, variant_config(run.root, ablation.reference))
    pattern = run.result(Pattern)
    if pattern is not None:
        return what_was_analysed(pattern)
    model = run.config.model.path if run.config else "an unrecorded model"
    return f"Measurements of the model {model} on {task_words(run.config)}; nothing was trained."


def what_was_analysed(pattern: Pattern) -> str:
    """One sentence: how many tokens, of whom, on what."""
    origin = "sampled" if pattern.source == "sampled" else f"read from {pattern.source}"
    task = f" of {pattern.task}" if pattern.task else ""
    return (
        f"{pattern.tokens:,} tokens of {pattern.completions:,} completions to "
        f"{pattern.prompts:,} prompts{task}, {origin} and scored by the model {pattern.model} "
        f"at temperature {pattern.temperature:g}."
    )


def what_was_compared(found: Ablation, config: RunConfig | None) -> str:
    """One sentence: how many variants and seeds, of what.

    Args:
        config: of the reference.
    """
    made, planned = sum(len(arm.seeds) for arm in found.arms), len(found.variants)
    counted = f"{planned or len(found.arms)} variants"
    if found.seeds:
        seeds = "one seed" if len(found.seeds) == 1 else f"{len(found.seeds)} seeds each"
        counted += f" with {seeds}, {made} of {planned * len(found.seeds)} runs finished"
    against = f" Reference: {found.reference}." if found.reference else ""
    if config is None:
        return f"{counted}.{against}"
    return (
        f"{counted}. {_method(config)}: {config.training.steps} steps {_amount(config)}.{against}"
    )


def _method(config: RunConfig) -> str:
    preset = (config.loss.preset or "").replace("_", " ").upper()
    return f"{preset} on {task_words(config)}, starting from the model {config.model.path}"


def _amount(config: RunConfig) -> str:
    rollout = config.rollout
    return f"of {rollout.prompts_per_step} prompts with {rollout.group_size} answers each"


def what_was_trained(run: RunData) -> str:
    """One sentence from config.json and the last line of metrics.jsonl."""
    config = run.config
    if config is None:
        return (
            f"{run.last_step} steps are recorded; what was trained is not: config.json is missing."
        )
    steps = config.training.steps
    made = f"{run.last_step}" if run.last_step == steps else f"{run.last_step} of {steps}"
    return (
        f"{_method(config)}: {made} steps {_amount(config)}. "
        f"The policy gradient is taken on {selected_tokens(config)}."
    )
