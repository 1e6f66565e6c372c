"""From run directories to one HTML page."""

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from forkpoint.figures.text import number, percent, visible
from forkpoint.report.ablation import ablation_section
from forkpoint.report.analysis import analysis_section
from forkpoint.report.branching import branching_section
from forkpoint.report.completions import MOST_TOKENS
from forkpoint.report.data import RunData, load_runs
from forkpoint.report.dynamics import dynamics_section
from forkpoint.report.evaluations import evaluation_section
from forkpoint.report.finding import findings, what_is_here
from forkpoint.report.intervals import intervals
from forkpoint.report.provenance import differences, provenance
from forkpoint.report.recorded import histogram_section, tokens_section
from forkpoint.report.steps import StepFile, step_files
from forkpoint.report.temperature import temperature_section
from forkpoint.report.tokens import viewer
from forkpoint.report.training import training_section
from forkpoint.report.words import words_section
from forkpoint.runs import RunDirectory
from forkpoint.runs.ablation import Ablation
from forkpoint.runs.atomic import write_text
from forkpoint.runs.results import (
    Branching,
    Dynamics,
    Pattern,
    Result,
    Temperature,
    result_path,
)

STYLES = ("report.css", "sections.css", "tokens.css")
SCRIPTS = (
    "tables.js",
    "charts.js",
    *("tokens_data.js", "tokens_colour.js", "tokens_details.js", "tokens_group.js"),
    "tokens_viewer.js",
)
"""Put together into the page's one style and one script."""
RELOADING = "reload.js"
"""In the script, too, while the page is watched."""

MEASUREMENTS: tuple[tuple[type[Result], str, str], ...] = (
    (Pattern, "entropy", "forkpoint analyze"),
    (Dynamics, "dynamics", "forkpoint dynamics"),
    (Temperature, "temperatures", "forkpoint temperature"),
    (Branching, "branching", "forkpoint branch"),
)
"""(result, what it is called, the command that makes it)."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with its own address."""

    anchor: str
    title: str
    template: str
    data: dict[str, Any]


def build_report(
    runs: Sequence[Path], out: Path, *, tokens: int = MOST_TOKENS, reload_s: float | None = None
) -> Path:
    """Write one page that needs no network, about run directories.

    The first run is the page's subject: its steps, its analysis and its completions are shown. All
    runs, and a demo's ``control/``, are drawn in the curves and compared by their evaluations.

    Args:
        out: the page; written whole or not at all.
        tokens: how many the viewer of completions holds, about.
        reload_s: let the browser load the page anew when nobody has touched it for so many seconds.

    Returns:
        ``out``.

    Raises:
        RunError: no run directory, nothing in it, a file that cannot be read, or ``out`` cannot be
            written.
    """
    write_text(out, render(load_runs(runs), tokens, reload_s))
    return out


def render(runs: Sequence[RunData], tokens: int, reload_s: float | None = None) -> str:
    """The page's HTML; free of lone surrogates, so that it can be encoded."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("forkpoint.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "visible": visible}
    scripts = (*SCRIPTS, RELOADING) if reload_s else SCRIPTS
    style, script = (_assets(environment, names) for names in (STYLES, scripts))
    main = runs[0]
    rows = findings(runs)
    ablation = main.result(Ablation) is not None
    files = step_files(RunDirectory(main.root).completions_dir("train"))
    return environment.get_template("report.html.j2").render(
        policy=content_security_policy(style, script),
        style=style,
        script=script,
        reload_s=reload_s,
        title=visible(main.label),
        sentence=visible(what_is_here(main)),
        missing=[visible(text) for text in missing(main, files)],
        finding=intervals(rows, share=True, reference=0.0) if rows else None,
        counts=sorted({row.estimate.n for row in rows}),
        unit="seeds" if ablation else "problems",
        sections=list(_sections(runs, files)),
        viewer=viewer(main, tokens),
        runs=[visible(run.label) for run in runs],
        provenance=[provenance(run) for run in runs],
        differences=differences(runs),
        unmeasured=[
            (what, command)
            for model, what, command in MEASUREMENTS
            if not ablation and not result_path(main.root, model).exists()
        ],
    )


def _sections(runs: Sequence[RunData], files: Sequence[StepFile]) -> Iterator[Section]:
    """What the page is made of, in order, without the parts that the runs have nothing for."""
    main = runs[0]
    completions = {} if main.trained or any(main.root.glob("completions/*/*")) else None
    found = (
        ("ablation", "Ablation", ablation_section(main)),
        ("training", "Training", training_section(runs)),
        ("evaluation", "Evaluation", evaluation_section(runs)),
        ("entropy", "Entropy", histogram_section(main, files)),
        ("analysis", "Analysis", analysis_section(main)),
        ("forks", "Forks", words_section(main)),
        ("tokens", "Tokens", tokens_section(main, files)),
        ("completions", "Completions", completions),
        ("dynamics", "Dynamics", dynamics_section(main)),
        ("temperature", "Temperature", temperature_section(main)),
        ("branching", "Branching", branching_section(main)),
    )
    for anchor, title, data in found:
        template = "tokens.html.j2" if anchor == "completions" else f"{anchor}_section.html.j2"
        if data is not None:
            yield Section(anchor, title, template, data)


def _assets(environment: jinja2.Environment, names: Sequence[str]) -> Markup:
    """The files one after the other, as one text."""
    loader = environment.loader
    assert loader is not None
    return Markup("\n".join(loader.get_source(environment, name)[0] for name in names))


def content_security_policy(style: str, script: str) -> str:
    """Nothing may be loaded, and only this style and this script may run, by their hashes."""

    def source(text: str) -> str:
        digest = hashlib.sha256(text.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; style-src {source(style)}; script-src {source(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def missing(run: RunData, files: Sequence[StepFile]) -> Iterator[str]:
    """What the run directory lacks, and what the page therefore lacks."""
    if run.trained and not run.metrics:
        yield "metrics.jsonl is empty: no step has been made yet."
    if run.config is None and run.result(Ablation) is None:
        yield "There is no config.json, so the page cannot say with which settings it was made."
    if not run.environment:
        yield "There is no env.json, so versions and command are unknown."
    if run.trained and not files:
        yield "There are no rollouts, so the page has no histogram, tokens or completions of steps."
    elif run.trained and not any(file.has_entropies for file in files):
        yield (
            "The rollouts hold no entropies: the engine that sampled them does not see whole "
            "distributions. Completions are shown without colours."
        )
