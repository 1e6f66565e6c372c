"""An engine that cannot do what the configuration asks for: refused by name, before sampling."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forkpoint.config import parse_config
from forkpoint.errors import ConfigError, SelectionError
from forkpoint.rollouts import SampleRequest
from forkpoint.rollouts.base import SamplingSettings
from forkpoint.rollouts.rows import PLAIN
from forkpoint.rollouts.transformers import TransformersEngine
from forkpoint.training.loop import train
from forkpoint.types import Completion

CALLS: list[str] = []


class Plain:
    """Samples as the in-process engine does, and sees no distributions."""

    same_weights = True

    def __init__(self, loaded: Any, config: Any) -> None:
        self._engine = TransformersEngine(
            loaded, decoding=PLAIN, batch_sequences=config.batch_sequences
        )

    def sample(
        self, requests: list[SampleRequest], settings: SamplingSettings, should_stop: Any = None
    ) -> list[Completion]:
        CALLS.append("sample")
        completions = self._engine.sample(requests, settings)
        return [replace(c, entropies=None) for c in completions]

    def close(self) -> None:
        CALLS.append("close")


class SaysNo(Plain):
    captures_entropy = False


class Promises(Plain):
    captures_entropy = True


def config_of(engine: str, entropy: str) -> Any:
    return parse_config(
        {
            "rewards": [{"type": "format", "pattern": r".*n\d \+ .*"}],
            "rollout": {
                "engine": f"{__name__}:{engine}",
                "prompts_per_step": 3,
                "group_size": 4,
                "max_new_tokens": 40,
            },
            "selection": {"entropy": entropy},
            "training": {"steps": 1, "mini_batches": 1, "max_bad_steps": 1, "threads": 1},
        }
    )


@pytest.mark.parametrize("engine", ["Plain", "SaysNo"])
def test_entropies_of_the_sampler_want_an_engine_that_captures_them(
    engine: str, tmp_path: Path
) -> None:
    CALLS.clear()
    with pytest.raises(
        ConfigError, match=rf"engine = '.*:{engine}' does not capture .* selection.entropy = 'old'"
    ):
        train(config_of(engine, "rollout"), tmp_path / "run")
    assert CALLS == ["close"]  # nothing was sampled, and nothing is left running
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("entropy", ["old", "auto"])
def test_other_entropies_do_not(entropy: str, tmp_path: Path) -> None:
    train(config_of("SaysNo", entropy), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_engine_that_breaks_its_promise_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="the engine gave a completion without entropies"):
        train(config_of("Promises", "rollout"), tmp_path / "run")
