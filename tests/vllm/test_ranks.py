"""Several processes share the servers; the first one gives them the weights of all."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from forkpoint.lab import BASE_POLICIES
from tests.distributed.test_ranks import lines, train
from tests.vllm.fake_server import FakeServer, serving

Fakes = dict[str, FakeServer]


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Fakes]:
    with ExitStack() as stack:
        yield dict(stack.enter_context(serving(BASE_POLICIES["lab:game"])) for _ in range(2))


def settings(fakes: Fakes, tmp_path: Path, **more: Any) -> dict[str, Any]:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[[rewards]]\ntype = "custom"\npath = "tests.vllm.rewards:some_number"\n')
    return {
        "recipe": recipe,
        "rollout__engine": "vllm",
        "rollout__vllm__servers": list(fakes),
        "rollout__vllm__weights_dir": str(tmp_path / "weights"),
        "rollout__prompts_per_step": 4,
        "rollout__max_new_tokens": 12,
        "rollout__dynamic_sampling": False,
        "evaluation__every": 0,
        "optim__lr": 0.005,
        **more,
    }


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{}, {"model__lora__rank": 2}])
@pytest.mark.parametrize("lag", [0, 1])
def test_two_processes_and_two_servers(
    two: Fakes, tmp_path: Path, lag: int, lora: dict[str, Any]
) -> None:
    given = settings(two, tmp_path, rollout__lag=lag, **lora)
    train(2, tmp_path / "run", steps=3, **given)
    found = lines(tmp_path / "run")
    assert [line["rollout/servers"] for line in found] == [2, 2, 2]
    assert all(line["mismatch/probe_max_nats"] < 1e-4 for line in found[1:])
    assert found[0]["mismatch/kl"] < 1e-7
    updates = [line["rollout/lag_updates"] for line in found]
    assert updates == ([0, 0, 0] if lag == 0 else [0, 2, 2])
    assert not list((tmp_path / "weights").iterdir())


@pytest.mark.slow
def test_a_server_that_one_process_loses_is_lost_to_none_of_its_prompts(
    two: Fakes, tmp_path: Path
) -> None:
    fake = next(iter(two.values()))

    def die() -> None:
        if fake.completions > 2:
            fake.status = dict.fromkeys(("/v1/completions", "/health"), 500)
            raise ConnectionAbortedError

    fake.before = die
    train(2, tmp_path / "run", steps=2, **settings(two, tmp_path))
    found = lines(tmp_path / "run")
    assert sum(line["rollout/redrawn"] for line in found) >= 1
    assert found[-1]["rollout/servers"] == 1
    assert [json.dumps(line["step"]) for line in found] == ["1", "2"]
