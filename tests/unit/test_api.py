"""The Python API: thin functions over what the commands call, with callables of the user's."""

import math
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import forkpoint
from forkpoint.api import _settled
from forkpoint.dotted import path_of, resolve
from forkpoint.entropy import reference_entropy, reference_logprob
from forkpoint.errors import ConfigError, Interrupted, RunError, SelectionError
from forkpoint.rewards import build_scorer
from forkpoint.rewards.scorer import default_workers
from forkpoint.runs.completions import read_completions
from forkpoint.tasks import build_task
from tests.stored import make_completion

QUICK = {
    "training": {"steps": 2, "threads": 1},
    "rollout": {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 40},
    "evaluation": {"every": 0, "problems": 4, "samples": 1},
    "checkpoint": {"every": 0},
}


def even(
    prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any
) -> list[float]:
    """A reward that some completions of a group get."""
    return [float(len(ids) % 2) for ids in completion_ids]


# ---- the package ---------------------------------------------------------------------------------


def test_importing_costs_no_torch_and_names_are_there() -> None:
    code = (
        "import sys, forkpoint\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert set(forkpoint.__all__) <= set(dir(forkpoint))\n"
        "assert all(getattr(forkpoint, name) for name in forkpoint.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        forkpoint.trian  # noqa: B018
    assert (Path(forkpoint.__file__).parent / "py.typed").exists()


# ---- plain tensors -------------------------------------------------------------------------------


def test_select_tokens_by_hand() -> None:
    entropies = torch.tensor([[0.1, 2.0, 9.0], [0.5, 0.5, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    # 5 tokens compete, ceil(0.2 * 5) = 1 and ceil(0.4 * 5) = 2 and ceil(0.5 * 5) = 3 of them stay;
    # of the two with 0.5 nats the first goes first.
    for fraction, kept in (
        (0.2, [[0, 1, 0], [0, 0, 0]]),
        (0.4, [[0, 1, 0], [1, 0, 0]]),
        (0.5, [[0, 1, 0], [1, 1, 0]]),
    ):
        assert forkpoint.select_tokens(entropies, mask, fraction).int().tolist() == kept


@given(st.lists(st.sampled_from([0.0, 0.1, 0.5, 2.0]), max_size=40), st.floats(0.01, 1))
def test_select_tokens_keeps_exactly_k_of_the_highest(values: list[float], fraction: float) -> None:
    entropies = torch.tensor(values)
    kept = forkpoint.select_tokens(entropies, keep_fraction=round(fraction, 3))
    assert kept.sum() == math.ceil(round(fraction, 3) * len(values) - 1e-9)
    if kept.any() and not kept.all():
        assert entropies[kept].min() >= entropies[~kept].max()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.ones(2, dtype=torch.bool)), r"shape \(3,\)"),
        ((torch.zeros(3), None, 0.0), "not in"),
        ((torch.tensor([math.nan]),), "not finite"),
    ],
)
def test_select_tokens_refuses(arguments: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        forkpoint.select_tokens(*arguments)


def test_token_stats_are_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 8, generator=generator, requires_grad=True)
    weight, bias = torch.randn(50, 8, generator=generator), torch.randn(50, generator=generator)
    ids = torch.randint(50, (2, 3), generator=generator)
    logprobs, entropies = forkpoint.token_stats(hidden, weight, ids, bias=bias, temperature=0.7)
    logits = (hidden @ weight.T + bias).reshape(-1, 50)
    expected = reference_logprob(logits, ids.flatten(), 0.7).view(2, 3)
    assert torch.allclose(logprobs.double(), expected.double(), atol=1e-5)
    expected = reference_entropy(logits, 0.7).view(2, 3)
    assert torch.allclose(entropies.double(), expected.double(), atol=1e-5)
    entropies.sum().backward()  # and no gradient through the log-probabilities
    (expected,) = torch.autograd.grad(
        -(logits.div(0.7).log_softmax(-1).exp() * logits.div(0.7).log_softmax(-1)).sum(), hidden
    )
    assert torch.allclose(hidden.grad, expected, atol=1e-5)


# ---- recipes and callables -----------------------------------------------------------------------


def test_a_recipe_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = forkpoint.load_config("lab_demo", ["training.steps=7"])
    assert (config.name, config.training.steps) == ("demo", 7)
    (tmp_path / "lab_demo").write_text("name = 'mine'")  # a file of the user's goes first
    assert forkpoint.load_config("lab_demo").name == "mine"
    with pytest.raises(ConfigError, match=r"did you mean lab_demo\?; there are lab_demo, lab_full"):
        forkpoint.load_config("lab_dmo")


def test_a_callable_of_a_module_goes_by_its_path_and_any_other_by_a_name_of_this_process() -> None:
    assert path_of(even, "x") == f"{__name__}:even"
    assert path_of(lambda: 1, "x").startswith("python:")
    for function in (even, lambda: 1, type("Rule", (), {"__call__": lambda self: 1})()):
        assert resolve(path_of(function, "x"), key="x") is function
    with pytest.raises(ConfigError, match="was given in Python, by a process that is gone"):
        resolve("python:lost", key="selection.rule")


def test_training_with_callables_of_this_process(tmp_path: Path) -> None:
    seen = []

    def odd(**columns: Any) -> list[float]:
        return [1 - x for x in even(**columns)]

    def rule(candidates: Any) -> Any:
        seen.append(len(candidates.entropies_N))
        return torch.ones_like(candidates.entropies_N)

    outcome = forkpoint.train(QUICK, tmp_path, rewards=[odd], rule=rule)
    assert outcome.state.step == 2
    assert seen
    rows = [
        row
        for path in sorted((tmp_path / "completions").rglob("*.parquet"))
        for row in read_completions([path])
    ]
    assert len({(row.step, row.prompt_id) for row in rows}) * 4 == len(rows) >= 16
    assert all(row.score.reward == 1 - len(row.completion) % 2 for row in rows)
    settled = _settled(tmp_path / "config.json")
    assert settled.selection.rule.startswith("python:test_training")


def test_lambdas_of_one_name_are_told_apart(tmp_path: Path) -> None:
    rewards = [lambda completions, **_: [1.0] * len(completions)]
    rewards += [lambda completions, **_: [0.25] * len(completions)]
    everything = [lambda candidates: torch.ones_like(candidates.entropies_N)]
    forkpoint.train(QUICK, tmp_path, rewards=rewards, rule=everything[0])
    rows = [
        r
        for path in (tmp_path / "completions").rglob("*.parquet")
        for r in read_completions([path])
    ]
    assert {tuple(row.score.parts.values()) for row in rows} == {(1.0, 0.25)}


def test_a_stop_is_obeyed_between_two_calls_of_this_process() -> None:
    config = _settled({"scoring": {"workers": 1}}, rewards=lambda **_: [1.0])
    with closing(build_scorer(config, build_task(config.task))) as scorer:
        problem = build_task(config.task).problem(0)
        with pytest.raises(Interrupted, match="stopped while scoring"):
            scorer.score([(problem, make_completion().completion)], lambda: True)


def test_processes_of_a_machine_share_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    for processes, workers in (("1", 8), ("3", 4), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert default_workers() == workers


def test_another_run_keeps_the_lambda_it_was_given(tmp_path: Path) -> None:
    paths = []
    for value in (1, 2):
        (reward,) = _settled(QUICK, rewards=[lambda value=value, **_: value]).rewards
        assert reward.type == "custom"
        paths.append(reward.path)
    assert [resolve(path, key="x")() for path in paths] == [1, 2]
    # A run goes on with a new lambda of the same name, and says what it lacks without one.
    forkpoint.train(QUICK, tmp_path, rewards=[lambda completions, **_: [1.0] * len(completions)])
    longer = {**QUICK, "training": {"steps": 3, "threads": 1}}
    with pytest.raises(RunError, match="given in Python must be given again"):
        forkpoint.train(longer, tmp_path, resume=True)
    again = [lambda completions, **_: [1.0] * len(completions)]
    assert forkpoint.train(longer, tmp_path, rewards=again, resume=True).state.step == 3


def test_what_cannot_be_called_is_refused(tmp_path: Path) -> None:
    wrong: Any = [even, 3]
    with pytest.raises(ConfigError, match="rewards: 3 cannot be called"):
        forkpoint.train(QUICK, tmp_path, rewards=wrong)


def test_a_reward_of_this_process_that_raises_is_data(tmp_path: Path) -> None:
    def broken(**columns: Any) -> list[float]:
        raise ValueError("no idea")

    forkpoint.train(QUICK | {"training": {"steps": 1, "threads": 1}}, tmp_path, rewards=broken)
    (path,) = (tmp_path / "completions").rglob("*.parquet")
    assert all("ValueError: no idea" in str(row.score.error) for row in read_completions([path]))


def test_evaluate_and_analyze_return_typed_results(tmp_path: Path) -> None:
    found = forkpoint.evaluate(QUICK, rewards=even)
    assert (found.accuracy.n, found.samples) == (4, 1)
    pattern = forkpoint.analyze(QUICK, tmp_path / "analysis", keep_fraction=0.5)
    assert pattern.completions == 4
    assert pattern.keep_fraction == 0.5


def test_names_of_selection_are_imported_when_they_are_used() -> None:
    import forkpoint.selection as selection

    assert selection.select_tokens is forkpoint.select_tokens
    with pytest.raises(AttributeError, match="no attribute 'selct'"):
        selection.selct  # noqa: B018
    nothing = torch.zeros(0)
    candidates = selection.Candidates(
        entropies_N=nothing,
        sequence_ids_N=nothing.long(),
        positions_N=nothing.long(),
        advantages_N=nothing,
        logprobs_N=nothing,
        keep_fraction=0.2,
    )
    assert selection.RULES["top"](candidates).tolist() == []


def test_a_rule_of_complex_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="it returned complex numbers"):
        forkpoint.train(
            QUICK,
            tmp_path,
            rewards=even,
            rule=lambda candidates: candidates.entropies_N.to(torch.complex64),
        )
