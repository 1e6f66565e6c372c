"""An engine that cannot do what the configuration asks for: refused by name, before sampling."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forkpoint.config import parse_config
from forkpoint.errors import ConfigError, SelectionError, UserCodeError
from forkpoint.sampling import SampleRequest
from forkpoint.sampling.base import SamplingSettings
from forkpoint.sampling.build import check_engine
from forkpoint.sampling.rows import PLAIN
from forkpoint.sampling.transformers import TransformersEngine
from forkpoint.sampling.users_engine import UsersEngine
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


class SaysNothing:
    """No flag at all."""

    def __init__(self, loaded: Any, config: Any) -> None:
        engine = Plain(loaded, config)
        self.sample, self.close = engine.sample, engine.close


class Faulty(Plain):
    """Samples, and gives what ``spoil`` makes of it."""

    spoil: Any = staticmethod(list)

    def sample(self, *arguments: Any) -> Any:
        return self.spoil(super().sample(*arguments))


def makes_nothing(loaded: Any, config: Any) -> None:
    return None


def cannot_close(loaded: Any, config: Any) -> Any:
    return SimpleNamespace(sample=list)


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


def test_an_engine_that_claims_nothing_is_one(tmp_path: Path) -> None:
    train(config_of("SaysNothing", "auto"), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_engine_that_does_not_say_so_cannot_split_temperatures() -> None:
    config = config_of("Plain", "auto")
    for said, cannot in ({}, True), ({"splits_temperatures": True}, False):
        flags = {"captures_entropy": True, **said}
        engine = UsersEngine(SimpleNamespace(sample=list, close=list, **flags), "an engine", 9)
        with pytest.raises(ConfigError, match="cannot decode") if cannot else nullcontext():
            check_engine(engine, config, splits_temperatures=True)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("makes_nothing", "made a NoneType without a method 'sample'"),
        ("cannot_close", "made a SimpleNamespace without a method 'close'"),
    ],
)
def test_what_is_no_engine_is_refused(factory: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"rollout.engine = '.*:{factory}' {said}"):
        train(config_of(factory, "auto"), tmp_path / "run")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda cs: None, "a NoneType, not a list"),
        (lambda cs: cs[:-1], "it gave 11 for 12"),
        (lambda cs: [c.text for c in cs], "a str, not a forkpoint.types.Completion"),
        (lambda cs: [replace(c, token_ids=(), logprobs=()) for c in cs], "one has no tokens"),
        (
            lambda cs: [replace(c, logprobs=c.logprobs[1:]) for c in cs],
            r"\d+ token_ids and \d+ logp",
        ),
        (lambda cs: [replace(c, entropies=(0.5,)) for c in cs], r"\d+ token_ids and 1 entropies"),
        (
            lambda cs: [replace(c, token_ids=[-1] * len(c.token_ids)) for c in cs],
            "one has the token -1, and the policy knows 0 to ",
        ),
        (
            lambda cs: [replace(c, token_ids=[*c.token_ids[1:], 2**20]) for c in cs],
            "one has the token 1048576, and the policy knows 0 to ",
        ),
    ],
)
def test_completions_that_are_none_are_refused(
    spoil: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "spoil", staticmethod(spoil))
    with pytest.raises(UserCodeError, match=rf"rollout.engine = '.*:Faulty' must .*{said}"):
        train(config_of("Faulty", "auto"), tmp_path / "run")


def test_an_engine_that_breaks_its_promise_ends_the_run_at_once(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="the engine gave a completion without entropies"):
        train(config_of("Promises", "rollout"), tmp_path / "run")
