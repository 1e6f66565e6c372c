"""What the commands do, as functions: ``forkpoint.train``, ``forkpoint.evaluate``, ..

Rewards, rules and engines may be plain callables. One that a module defines is used by its dotted
path, as in a recipe. One that only this process knows, such as a lambda or a function of a
notebook, works too, with two limits: such a reward is called in this process, where nothing can end
it when it hangs; and a run that is resumed must be given it again.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from forkpoint.config import RunConfig, load_config, parse_config
from forkpoint.dotted import path_of
from forkpoint.errors import ConfigError

if TYPE_CHECKING:
    from forkpoint.runs.results import Evaluation, Pattern
    from forkpoint.selection import Rule
    from forkpoint.training.loop import Observer, Outcome

Config: TypeAlias = RunConfig | Mapping[str, Any] | str | Path | None
"""A configuration, its sections as a mapping, a recipe's file or name, or None for the defaults."""
Reward: TypeAlias = Callable[..., Sequence[float | None]]
"""``f(prompts, completions, completion_ids, **columns)`` -> one reward each, as in TRL."""


def train(
    config: Config,
    run_dir: str | Path,
    *,
    rewards: Reward | Sequence[Reward] | None = None,
    rule: "str | Rule | None" = None,
    engine: str | Callable[..., Any] | None = None,
    resume: bool = False,
    observer: "Observer | None" = None,
) -> "Outcome":
    """Train in the folder ``run_dir``, which gets all that a run leaves (docs/run-directory.md).

    Ctrl-C raises KeyboardInterrupt once the last finished step is saved; amid a step's updates,
    whose weights are of no step, the run goes on from the newest checkpoint.

    Args:
        rewards: in the place of ``config.rewards``; the first one is the verifier.
        rule: in the place of ``selection.rule``.
        engine: in the place of ``rollout.engine``: a factory ``f(loaded_model, config)``.
        resume: go on from the newest complete checkpoint.
        observer: told of every step; by default nothing is printed.

    Raises:
        ForkpointError: see errors.py.
    """
    from forkpoint.training.loop import train as run

    settled = _settled(config, rewards=rewards, rule=rule, engine=engine)
    return run(settled, Path(run_dir), resume=resume, observer=observer)


def evaluate(
    config: Config,
    run_dir: str | Path | None = None,
    *,
    rewards: Reward | Sequence[Reward] | None = None,
    engine: str | Callable[..., Any] | None = None,
) -> "Evaluation":
    """The accuracy of ``config.model`` on held-out problems, with its interval.

    Args:
        run_dir: keeps every completion and the result; None keeps nothing.

    Raises:
        ForkpointError: see errors.py.
    """
    from forkpoint.evaluation.evaluate import evaluate_config

    settled = _settled(config, rewards=rewards, rule=None, engine=engine)
    return evaluate_config(settled, None if run_dir is None else Path(run_dir))


def analyze(
    config: Config,
    run_dir: str | Path,
    *,
    rollouts: str | Path | None = None,
    keep_fraction: float = 0.2,
) -> "Pattern":
    """The entropy pattern of a model's chains of thought, as ``forkpoint analyze`` finds it.

    Args:
        rollouts: completions that exist already, a file or a folder; None samples
            ``evaluation.samples`` answers to each of ``evaluation.problems`` held-out problems.
        keep_fraction: the share of tokens of highest entropy that count as forks.

    Raises:
        ForkpointError: see errors.py.
    """
    from forkpoint.analysis.analyze import AnalysisSettings
    from forkpoint.analysis.analyze import analyze as run
    from forkpoint.analysis.summary import SummarySettings

    settings = AnalysisSettings(
        rollouts=None if rollouts is None else Path(rollouts),
        summary=SummarySettings(keep_fraction=keep_fraction),
    )
    return run(_settled(config), Path(run_dir), settings)


def _settled(
    config: Config,
    *,
    rewards: Reward | Sequence[Reward] | None = None,
    rule: "str | Rule | None" = None,
    engine: str | Callable[..., Any] | None = None,
) -> RunConfig:
    """The configuration with callables in it as their paths."""
    if isinstance(config, Mapping):
        config = parse_config(dict(config))
    elif not isinstance(config, RunConfig):
        config = load_config(config)
    raw = config.model_dump(exclude_unset=True)
    if rewards is not None:
        listed = [rewards] if callable(rewards) else list(rewards)
        if wrong := [reward for reward in listed if not callable(reward)]:
            raise ConfigError(f"rewards: {wrong[0]!r} cannot be called")
        paths = [path_of(reward, f"rewards.{i}") for i, reward in enumerate(listed)]
        raw["rewards"] = [{"type": "custom", "path": path} for path in paths]
    for section, key, given in (("selection", "rule", rule), ("rollout", "engine", engine)):
        if given is not None:
            path = path_of(given, f"{section}.{key}") if callable(given) else given
            raw[section] = {**raw.get(section, {}), key: path}
    return parse_config(raw)
