"""Benchmarks: each with its own prompt, lengths, temperature and samples, from one loaded model."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from forkpoint.config import RunConfig
from forkpoint.config.rewards import (
    CodeRewardConfig,
    IntegerRewardConfig,
    MathRewardConfig,
    OverlongConfig,
)
from forkpoint.errors import ConfigError, RunError
from forkpoint.evaluation.evaluate import (
    decisive,
    digest,
    majorities,
    measured,
    sample_pieces,
)
from forkpoint.policy.body import context_length
from forkpoint.policy.load import LoadedModel, load_model
from forkpoint.rewards import build_scorer
from forkpoint.runs import RunDirectory
from forkpoint.runs.evaluation import Benchmarks, BenchmarkScore
from forkpoint.runs.results import find_result, write_result
from forkpoint.runs.resume import Pieces
from forkpoint.sampling import Engine, Prompter, SamplingParts, build_engine
from forkpoint.tasks.benchmarks import OpenBenchmark, open_benchmark

REWARDS = {
    "integer": IntegerRewardConfig(type="integer"),
    "math": MathRewardConfig(type="math"),
    "code": CodeRewardConfig(type="code"),
}
"""The verifier that a benchmark names, as a reward."""


def evaluate_benchmarks(
    config: RunConfig,
    root: Path | None,
    should_stop: Callable[[], bool] = lambda: False,
    note: Callable[[str], None] = lambda text: None,
) -> Benchmarks:
    """Measure ``config.model`` on ``evaluation.benchmarks``.

    Args:
        root: a folder for every completion and results/benchmarks.json, where other benchmarks of
            the same model stay; None keeps nothing. Started again, it goes on where it stopped.
        note: gets a line about each thing that whoever reads the result should know.

    Raises:
        ForkpointError: see errors.py; ``Interrupted`` when ``should_stop()`` turned true.
    """
    if root is None:
        with TemporaryDirectory() as folder:
            return evaluate_benchmarks(config, Path(folder), should_stop, note)
    chosen = config.evaluation.benchmarks
    opened = [open_benchmark(one, config.evaluation.benchmark_dir) for one in chosen]
    if not opened:
        raise ConfigError("there is no benchmark to measure: name some in evaluation.benchmarks")
    with RunDirectory.claim(root) as directory, ExitStack() as stack:
        earlier = _earlier(root, config)
        loaded = load_model(config.model)
        folder = directory.completions_dir("benchmarks")
        ready = [_ready(one, loaded, config, folder / one.name) for one in opened]
        longest = max(ready, key=lambda one: one.benchmark.max_new_tokens)
        engine = build_engine(loaded, longest.config, should_stop=should_stop)
        stack.callback(engine.close)
        directory.describe(config.model_dump_json(indent=2))
        scores = {one.name: one for one in earlier}
        for one in ready:
            name = one.benchmark.name
            for text in one.benchmark.notes:
                note(text)
            scores[name] = found = _measure(one, loaded, engine, should_stop)
            note(f"{name}: {found.accuracy.percent()}, avg@{found.samples}")
            write_result(root, _result(config, scores.values()))
    return _result(config, [scores[one.name] for one in opened])


def _result(config: RunConfig, scores: Iterable[BenchmarkScore]) -> Benchmarks:
    return Benchmarks(
        model=config.model.path, seed=config.evaluation.seed, benchmarks=tuple(scores)
    )


def _earlier(root: Path, config: RunConfig) -> Sequence[BenchmarkScore]:
    """What was measured here before.

    Raises:
        RunError: of another model, or with other random numbers.
    """
    found = find_result(root, Benchmarks)
    if found is None:
        return ()
    if (found.model, found.seed) != (config.model.path, config.evaluation.seed):
        raise RunError(
            f"{root} has benchmarks of {found.model}, seed {found.seed}: choose another --run-dir "
            f"for {config.model.path}, seed {config.evaluation.seed}"
        )
    return found.benchmarks


class _Ready(NamedTuple):
    """A benchmark that nothing is known to keep from being sampled."""

    benchmark: OpenBenchmark
    config: RunConfig
    """With the benchmark's settings in the place of training's."""
    prompter: Prompter
    pieces: Pieces


def _ready(
    benchmark: OpenBenchmark, loaded: LoadedModel, config: RunConfig, folder: Path
) -> _Ready:
    """Find every fault of a benchmark before the first one is sampled for hours."""
    if benchmark.chat and getattr(loaded.tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"benchmark {benchmark.name} asks through a chat template and the tokenizer has none "
            "(a base model?): set its prompt = 'paper', or use an instruction-tuned model"
        )
    prompter = Prompter(
        loaded.tokenizer,
        max_positions=context_length(loaded.model),
        max_new_tokens=benchmark.max_new_tokens,
        setting=f"max_new_tokens of benchmark {benchmark.name}",
    )
    for problem in benchmark.problems:
        prompter(problem)
    settled = _settled(config, benchmark)
    build_scorer(settled, benchmark).close()
    return _Ready(benchmark, settled, prompter, Pieces.open(folder, _decides(settled, benchmark)))


def _settled(config: RunConfig, benchmark: OpenBenchmark) -> RunConfig:
    sampling = {
        "temperature": benchmark.temperature,
        "max_new_tokens": benchmark.max_new_tokens,
    }
    counted = {"samples": benchmark.samples, "problems": len(benchmark.problems)}
    return config.model_copy(
        update={
            "rewards": (REWARDS[benchmark.judge],),
            "overlong": OverlongConfig(),
            "rollout": config.rollout.model_copy(update=sampling),
            "evaluation": config.evaluation.model_copy(update=counted),
        }
    )


def _measure(
    ready: _Ready, loaded: LoadedModel, engine: Engine, should_stop: Callable[[], bool]
) -> BenchmarkScore:
    """One benchmark, from its problems to its numbers."""
    benchmark, settled, prompter, pieces = ready
    scorer = build_scorer(settled, benchmark, compared=benchmark.samples)
    parts = SamplingParts(
        loaded=loaded, task=benchmark, prompter=prompter, engine=engine, scorer=scorer
    )
    problems, purpose = benchmark.problems, f"benchmark {benchmark.name}"
    try:
        found = sample_pieces(parts, settled, problems, pieces, purpose, should_stop)
    finally:
        scorer.close()
    return BenchmarkScore(
        name=benchmark.name,
        source=benchmark.source,
        verifier=benchmark.judge,
        prompt=benchmark.prompt,
        chat=benchmark.chat,
        majority_at=majorities(found, settled.evaluation.seed),
        **measured(found, problems, settled),
    )


def _decides(settled: RunConfig, benchmark: OpenBenchmark) -> dict[str, Any]:
    """All that decides a benchmark's completions and verdicts, the problems themselves included."""
    found = decisive(settled)
    del found["task"]
    asked = {"prompt": benchmark.prompt, "problems": digest(*benchmark.problems)}
    return found | {"benchmark": asked}
