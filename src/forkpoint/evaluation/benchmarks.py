"""Benchmarks: each with its own prompt, lengths, temperature and samples, from one loaded model."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from forkpoint.config import RunConfig
from forkpoint.config.stages import IntegerRewardConfig, MathRewardConfig, OverlongConfig
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
        for one in opened:
            _check(one, loaded)
        longest = max(one.max_new_tokens for one in opened)
        engine = build_engine(loaded, _settled(config, opened[0], longest), should_stop=should_stop)
        stack.callback(engine.close)
        directory.describe(config.model_dump_json(indent=2))
        folder = directory.completions_dir("benchmarks")
        scores = {one.name: one for one in earlier}
        for one in opened:
            for text in one.notes:
                note(text)
            found = _measure(one, loaded, engine, config, folder / one.name, should_stop)
            note(f"{one.name}: {found.accuracy.percent()}, avg@{one.samples}")
            scores[one.name] = found
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


def _check(benchmark: OpenBenchmark, loaded: LoadedModel) -> None:
    """Refuse, before anything is sampled, what this model cannot be asked."""
    if benchmark.chat and getattr(loaded.tokenizer, "chat_template", None) is None:
        raise ConfigError(
            f"benchmark {benchmark.name} asks through a chat template and the tokenizer has none "
            "(a base model?): set its prompt = 'paper', or use an instruction-tuned model"
        )
    _prompter(benchmark, loaded)


def _prompter(benchmark: OpenBenchmark, loaded: LoadedModel) -> Prompter:
    return Prompter(
        loaded.tokenizer,
        max_positions=context_length(loaded.model),
        max_new_tokens=benchmark.max_new_tokens,
        setting=f"max_new_tokens of benchmark {benchmark.name}",
    )


def _settled(config: RunConfig, benchmark: OpenBenchmark, longest: int) -> RunConfig:
    """The configuration with the benchmark's settings in the place of training's.

    Args:
        longest: how long answers may be.
    """
    sampling = {"temperature": benchmark.temperature, "max_new_tokens": longest}
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
    benchmark: OpenBenchmark,
    loaded: LoadedModel,
    engine: Engine,
    config: RunConfig,
    folder: Path,
    should_stop: Callable[[], bool],
) -> BenchmarkScore:
    """One benchmark, from its problems to its numbers."""
    settled = _settled(config, benchmark, benchmark.max_new_tokens)
    pieces = Pieces.open(folder, _decides(settled, benchmark))
    prompter = _prompter(benchmark, loaded)
    scorer = build_scorer(settled, benchmark, compared=benchmark.samples)
    parts = SamplingParts(
        loaded=loaded, task=benchmark, prompter=prompter, engine=engine, scorer=scorer
    )
    problems = benchmark.problems
    purpose = f"benchmark {benchmark.name}"
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
        majority_at=majorities(found, config.evaluation.seed),
        **measured(found, problems, settled),
    )


def _decides(settled: RunConfig, benchmark: OpenBenchmark) -> dict[str, Any]:
    """All that decides a benchmark's completions and verdicts, the problems themselves included."""
    found = decisive(settled)
    del found["task"]
    asked = {"prompt": benchmark.prompt, "problems": digest(*benchmark.problems)}
    return found | {"benchmark": asked}
