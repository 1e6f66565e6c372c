"""``forkpoint eval``."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forkpoint.cli.options import Recipe, SampledModel
from forkpoint.cli.terminal import SafeConsole
from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from forkpoint.config import RunConfig
    from forkpoint.config.evaluation import BenchmarkConfig


def evaluate(
    recipe: Recipe = None,
    *,
    sampled: SampledModel = SampledModel(),  # noqa: B008
    benchmark: Annotated[list[str] | None, Parameter(negative="")] = None,
    benchmark_dir: Path | None = None,
    max_new_tokens: int | None = None,
    compare: tuple[Path, Path] | None = None,
    run_dir: Path | None = None,
) -> int:
    """Measure a model's accuracy, with a 95 % interval: on held-out problems, or on benchmarks.

    Parameters
    ----------
    benchmark
        Instead of held-out problems: names such as aime24,math500, or JSONL and parquet files, with
        a comma between them. Without it those of the recipe, if it has any.
    benchmark_dir
        The folder with their files, for a machine without the hub.
    max_new_tokens
        How long an answer to a benchmark may be, in tokens.
    compare
        Sample nothing: compare the evaluations in two run directories, problem by problem.
    run_dir
        Write the completions and the result there.
    """
    if compare is not None:
        given = (recipe, benchmark, benchmark_dir, max_new_tokens, sampled.model, sampled.set_)
        if sampled.chosen or any(given):
            raise ConfigError("--compare A B takes no other option than --run-dir")
        return _compare(*compare, run_dir)
    from forkpoint.config import load_config

    config = load_config(recipe, sampled.settings(sampled.model))
    if sampled.task is not None and benchmark:
        raise ConfigError("--task is for held-out problems: give either it or --benchmark")
    chosen = () if sampled.task is not None else chosen_benchmarks(config, benchmark or [])
    numbers = {"problems": sampled.problems, "samples": sampled.samples}
    if chosen:
        numbers["max_new_tokens"] = max_new_tokens
    elif (benchmark_dir, max_new_tokens) != (None, None):
        raise ConfigError(
            "--benchmark-dir and --max-new-tokens need benchmarks: name some with --benchmark"
        )
    config = _settled(config, numbers, chosen, benchmark_dir)
    console = SafeConsole(stderr=True)  # the output is JSON
    kept = "whole parts are kept, the same command goes on"
    with console.stoppable(kept if run_dir else "nothing is kept without --run-dir") as stop:
        if chosen:
            from forkpoint.evaluation.benchmarks import evaluate_benchmarks

            found = evaluate_benchmarks(config, run_dir, stop, console.note)
            shown = found.model_dump(exclude={"benchmarks": {"__all__": {"problems"}}})
        else:
            from forkpoint.evaluation.evaluate import evaluate_config

            found = evaluate_config(config, run_dir, stop, console.note)
            shown = found.model_dump(exclude={"problems"})
    print(json.dumps(shown, indent=2))
    return 0


def _settled(
    config: "RunConfig",
    numbers: Mapping[str, int | None],
    chosen: Sequence["BenchmarkConfig"],
    folder: Path | None,
) -> "RunConfig":
    """The configuration with what the command line says: of benchmarks, or of held-out problems."""
    given = {name: number for name, number in numbers.items() if number is not None}
    if wrong := [name for name, number in given.items() if number < 1]:
        raise ConfigError(f"--{wrong[0].replace('_', '-')} must be 1 at least")
    settings: dict[str, object] = dict(given)
    if chosen:
        settings = {"benchmarks": tuple(one.model_copy(update=given) for one in chosen)}
    if folder is not None:
        settings["benchmark_dir"] = str(folder)
    evaluation = config.evaluation.model_copy(update=settings)
    return config.model_copy(update={"evaluation": evaluation})


def chosen_benchmarks(config: "RunConfig", named: list[str]) -> tuple["BenchmarkConfig", ...]:
    """Those that are named, as the recipe describes them if it does; none named: the recipe's.

    Raises:
        ConfigError: one is named twice, or by what cannot be a name.
    """
    from forkpoint.config.evaluation import NAME, BenchmarkConfig
    from forkpoint.runs.rows import SUFFIXES

    described = {one.name: one for one in config.evaluation.benchmarks}
    chosen: dict[str, BenchmarkConfig] = {}
    for text in (name.strip() for one in named for name in one.split(",")):
        path, is_file = Path(text), text.endswith(SUFFIXES)
        name = path.resolve().parent.name if is_file and path.stem == "test" else path.stem
        name = name if is_file else text
        if name in chosen:
            raise ConfigError(f"--benchmark: {name} is named twice")
        if not re.fullmatch(NAME, name):
            raise ConfigError(
                f"--benchmark {text!r}: {name!r} is no name; it has letters, digits, '.', '_', '-'"
            )
        own = BenchmarkConfig(name=name, path=text) if is_file else BenchmarkConfig(name=name)
        chosen[name] = own if is_file else described.get(name, own)
    return tuple(chosen.values()) or config.evaluation.benchmarks


def _compare(first: Path, second: Path, run_dir: Path | None) -> int:
    from forkpoint.evaluation.compare import compare
    from forkpoint.runs import RunDirectory
    from forkpoint.runs.results import write_result

    found = compare(first, second)
    if run_dir is not None:
        with RunDirectory.claim(run_dir):
            write_result(run_dir, found)
    print(json.dumps(found.model_dump(), indent=2))
    return 0
