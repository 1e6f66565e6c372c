"""The one-file example and the package are two implementations of one method: same numbers.

The example samples with its own loop, sorts, pads, runs every token and every logit; the package
selects by a rule table, drops dead sequences, cuts tails and runs the head on selected rows. They
share the laboratory's problems, verifier and first policy, and the streams of random numbers.
"""

import ast
import importlib
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from forkpoint.batching import build_batch
from forkpoint.config import RunConfig, load_config, parse_config
from forkpoint.config.stages import LabTaskConfig
from forkpoint.rewards.build import CustomFunction
from forkpoint.runs import RunDirectory, read_metrics
from forkpoint.runs.completions import StoredCompletion, read_completions
from forkpoint.selection import RULES, Candidates, scope_groups, select
from forkpoint.training.loop import train
from forkpoint.types import Completion, FinishReason, Problem
from tests.conftest import make_group

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module", autouse=True)
def _examples_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield


@pytest.fixture(scope="module")
def example() -> Any:
    return importlib.import_module("minimal_grpo")


# ---- five steps of both -------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "steps": 5,
    "seed": 0,
    "prompts": 6,
    "samples": 4,
    "max_new_tokens": 60,
    "mini_batches": 3,
    "lr": 3e-4,  # high enough that some ratios leave 0.8 .. 1.28 and are clipped
}


@dataclass(frozen=True)
class Both:
    """The same run, made twice."""

    reports: list[Any]
    """The example's, one per step."""
    lines: list[dict[str, Any]]
    """The package's metrics of the same steps."""
    rows: list[list[StoredCompletion]]
    """The package's completions of each step that were trained on, in order."""
    first: dict[str, Tensor]
    example_last: dict[str, Tensor]
    package_last: dict[str, Tensor]


@pytest.fixture(scope="module")
def both(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Both:
    model, tokenizer = example.load_base_policy()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    reports = list(example.train(model, tokenizer, example.Settings(**SETTINGS)))

    directory = RunDirectory(tmp_path_factory.mktemp("package") / "run")
    train(package_config(), directory.root)
    rows = [
        [row for row in read_completions([path]) if row.accepted]
        for path in sorted(directory.completions_dir("train").iterdir())
    ]
    (weights,) = directory.checkpoints_dir.glob("*/model.safetensors")
    return Both(
        reports=reports,
        lines=read_metrics(directory.metrics_jsonl),
        rows=rows,
        first=first,
        example_last=model.state_dict(),
        package_last=load_file(weights),
    )


def package_config() -> RunConfig:
    s = SETTINGS
    return parse_config(
        {
            "rollout": {
                "prompts_per_step": s["prompts"],
                "group_size": s["samples"],
                "max_new_tokens": s["max_new_tokens"],
            },
            "optim": {"lr": s["lr"]},
            "training": {
                "steps": s["steps"],
                "seed": s["seed"],
                "mini_batches": s["mini_batches"],
                "threads": 1,
            },
            "rewards": [{"type": "task", "timeout_s": 60}],  # no busy machine may change the run
            "checkpoint": {"every": 0},
            "evaluation": {"every": 0},
        }
    )


def test_same_draws_rewards_and_advantages(both: Both) -> None:
    for report, line, rows in zip(both.reports, both.lines, both.rows, strict=True):
        assert len(report.sampled_B) == line["reward/sampled_groups"] * SETTINGS["samples"]
        assert fmean(a.reward for a in report.sampled_B) == pytest.approx(line["reward/mean"])
        trained = report.trained_B
        assert [a.token_ids for a in trained] == [row.completion.token_ids.tolist() for row in rows]
        assert [a.reward for a in trained] == [row.score.reward for row in rows]
        assert [a.advantage for a in trained] == pytest.approx([row.advantage for row in rows])


def test_same_tokens_are_kept(both: Both) -> None:
    for report, line, rows in zip(both.reports, both.lines, both.rows, strict=True):
        entropies = [h for a in report.trained_B for h in a.entropies]
        # The example reads a prompt once per sample, the package once per prompt: rounding of
        # float32 through three layers, 1e-5 nats at most.
        stored = [r.completion.entropies for r in rows if r.completion.entropies is not None]
        assert entropies == pytest.approx(np.concatenate(stored).tolist(), abs=1e-4)
        kept = [bool(s) for row in rows if row.selected is not None for s in row.selected]
        assert sum(kept) == math.ceil(Fraction(1, 5) * line["selection/pool_tokens"])
        # A selection may only differ if two entropies at its edge are equal but for rounding.
        edge = sorted(entropies, reverse=True)[sum(kept) - 1 :][:2]
        assert report.selected_T.tolist() == kept, f"entropies at the edge: {edge}"


def test_same_losses_and_gradients(both: Both) -> None:
    """A loss is a sum of some hundred float32 terms divided by their number: 1e-6 of rounding,
    which a step's own sum can double and the weights, apart by 1e-5 of how far they went, add to.
    The losses' own size hangs on cancellation between winners and losers, hence ``abs``."""
    for report, line in zip(both.reports, both.lines, strict=True):
        assert fmean(report.losses) == pytest.approx(line["loss/policy"], rel=1e-5, abs=1e-6)
        assert fmean(report.grad_norms) == pytest.approx(line["grad/norm"], rel=1e-4)


def test_same_final_weights(both: Both) -> None:
    """AdamW divides each gradient by its own size, and so lifts the rounding of those that are
    almost zero to the size of the rest: the tolerance is on the whole, against the distance."""
    assert both.package_last.keys() <= both.example_last.keys()  # the tied head is stored once
    apart, moved, size = 0.0, 0.0, 0
    for name, package in both.package_last.items():
        ours = both.example_last[name].double()
        apart += float((ours - package).square().sum())
        moved += float((ours - both.first[name]).square().sum())
        size += ours.numel()
    assert math.sqrt(apart / moved) < 1e-4
    assert moved > size * SETTINGS["lr"] ** 2  # further than one update moves every weight


def test_the_comparison_has_something_to_compare(both: Both) -> None:
    """Otherwise whole parts of the method could be wrong on both sides of the equal signs."""
    assert len(both.reports) == len(both.lines) == SETTINGS["steps"]
    assert all(len(r.losses) == SETTINGS["mini_batches"] for r in both.reports)
    assert any(line["rollout/rounds"] > 1 for line in both.lines)
    assert any(line["loss/clip_fraction_kept"] > 0 for line in both.lines)
    assert any(row.completion.finish_reason == "length" for rows in both.rows for row in rows)
    assert any(norm > 1 for r in both.reports for norm in r.grad_norms)  # and so clipped


# ---- the example on its own ---------------------------------------------------------------------


def test_example_takes_from_the_package_what_is_no_part_of_the_method() -> None:
    tree = ast.parse((EXAMPLES / "minimal_grpo.py").read_text(encoding="utf-8"))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    ]
    ours = {name for name in imported if name and name.startswith("forkpoint")}
    assert ours == {"forkpoint.lab", "forkpoint.randomness"}


def test_example_has_the_package_defaults(example: Any) -> None:
    s, config = example.Settings(), RunConfig()
    assert config.task == LabTaskConfig(seed=0)
    assert (s.seed, s.mini_batches) == (config.training.seed, config.training.mini_batches)
    rollout = config.rollout
    assert (s.prompts, s.samples) == (rollout.prompts_per_step, rollout.group_size)
    assert (s.max_rounds, s.max_new_tokens) == (rollout.max_rounds, rollout.max_new_tokens)
    assert s.temperature == rollout.temperature
    assert s.keep_fraction == Fraction(str(config.selection.keep_fraction))
    assert (s.clip_low, s.clip_high) == (config.loss.clip_low, config.loss.clip_high)
    assert (s.lr, s.clip_norm) == (config.optim.lr, config.optim.clip_norm)


@settings(deadline=None)  # the first example imports torch and transformers
@given(
    rows=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 0.625, 2.0]), min_size=1, max_size=7),
        min_size=2,
        max_size=5,
    ),
    percent=st.sampled_from([1, 7, 20, 25, 50, 80, 100]),
)
def test_ties_go_the_same_way(rows: list[list[float]], percent: int) -> None:
    example = importlib.import_module("minimal_grpo")
    rewards = [1.0] + [0.0] * (len(rows) - 1)
    group = make_group(0, rewards, [len(row) for row in rows], entropies=rows)
    weights_T = weights([group], {"keep_fraction": percent / 100})
    entropies_T = torch.tensor([h for row in rows for h in row])
    selected_T = example.select_forks(entropies_T, Fraction(percent, 100))
    assert selected_T.tolist() == (weights_T > 0).tolist()


def test_a_step_in_which_no_group_teaches_is_survived(example: Any) -> None:
    """Games cut off after two words are never won: no group has a winner."""
    model, tokenizer = example.load_base_policy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = example.Settings(steps=1, prompts=2, samples=2, max_new_tokens=2)
    (report,) = example.train(model, tokenizer, settings)
    assert len(report.sampled_B) == 3 * 2 * 2  # three rounds of two prompts
    assert report.trained_B == report.losses == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_example_runs_as_a_script() -> None:
    arguments = ["--steps", "1", "--prompts", "4", "--samples", "4"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "minimal_grpo.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = re.match(r"step   1   reward (0\.\d+) .* forks (\d+) of (\d+) ", line)
    assert found is not None, line
    reward, forks, pool = float(found[1]), int(found[2]), int(found[3])
    assert 0 < reward < 1
    assert 0 < forks == math.ceil(Fraction(1, 5) * pool)


# ---- a rule and a reward of the user's own ------------------------------------------------------


def weights(groups: Sequence[Any], selection: dict[str, Any]) -> Tensor:
    """What ``forkpoint.selection.select`` gives, over the whole batch."""
    batch = build_batch(groups, advantage="grpo")
    assert batch.rollout_entropies_T is not None
    config = parse_config({"selection": selection}).selection
    everything_T = scope_groups(batch, "batch", [])
    chosen = select(batch, batch.rollout_entropies_T, everything_T, config, seed=0, step=1)
    return chosen.weights_T


def test_custom_rule_through_select() -> None:
    # Rewards 1 0 0 0: centred 3/4 -1/4 -1/4 -1/4, std = sqrt((9 + 1 + 1 + 1) / 16 / 3) = 1/2, so
    # |A| = 1.5 .5 .5 .5 and H |A| = .3 .75 | .45 .15 | .35 .05 | .05 .05; k = ceil(.25 * 8) = 2.
    entropies = [[0.2, 0.5], [0.9, 0.3], [0.7, 0.1], [0.1, 0.1]]
    group = make_group(0, [1.0, 0.0, 0.0, 0.0], [2, 2, 2, 2], entropies=entropies)
    settings = {"rule": "custom_rule:decisive", "keep_fraction": 0.25}
    assert weights([group], settings).tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    # The rule of the paper keeps the two of highest entropy, .9 and .7.
    assert weights([group], {"keep_fraction": 0.25}).tolist() == [0, 0, 1, 0, 1, 0, 0, 0]


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([-1.0, 0.5, 2.0])),
        min_size=1,
        max_size=12,
    ),
    random=st.randoms(use_true_random=False),
)
def test_custom_rule_does_not_look_at_the_order(rows: list[Any], random: Any) -> None:
    decisive = importlib.import_module("custom_rule").decisive
    order = list(range(len(rows)))
    random.shuffle(order)

    def candidates(order: list[int]) -> Candidates:
        return Candidates(
            entropies_N=torch.tensor([rows[i][0] for i in order]),
            advantages_N=torch.tensor([rows[i][1] for i in order]),
            sequence_ids_N=torch.tensor([i // 3 for i in order]),  # three tokens a sequence
            positions_N=torch.tensor([i % 3 for i in order]),
            logprobs_N=torch.zeros(len(order)),
            keep_fraction=0.4,
        )

    in_order_N = decisive(candidates(list(range(len(rows)))))
    assert torch.equal(decisive(candidates(order)), in_order_N[order])
    # Sorted by (H |A| falling, sequence, position): the index is the last two in one.
    best = sorted(range(len(rows)), key=lambda i: (-rows[i][0] * abs(rows[i][1]), i))
    k = math.ceil(Fraction(2, 5) * len(rows))
    assert in_order_N.nonzero().flatten().tolist() == sorted(best[:k])


START = "pick n3 and n5 : n3 + n5 = n8 ; left n2 n8 | pick n8 and n2 : n8"
WIN = f"{START} * n2 = n16 ; check n16 = n16 yes"
MISS = f"{START} + n2 = n10 ; check n10 = n16 no"
GAMES: dict[str, float | None] = {
    WIN: 1.0,
    f"{MISS} again {WIN}": 1 / 2,
    f"{MISS} again {MISS} again {WIN}": 1 / 3,
    f"{MISS} stop": 0.0,
    WIN.replace("n8 * n2 = n16", "n8 * n2 = n17"): 0.0,  # false, though the check is declared won
    f"pick pick {WIN}": 0.0,
    START: None,  # the budget ran out in the middle of a try
    f"{MISS} again pick": None,
}


@pytest.mark.parametrize("text", GAMES)
def test_custom_reward_as_the_package_calls_it(text: str) -> None:
    problem = Problem(
        id="p", prompt="n3 n5 n2 goal n16 :", columns={"numbers": (3, 5, 2), "goal": 16}
    )
    completion = Completion(
        token_ids=(1,), logprobs=(0.0,), entropies=None, finish_reason=FinishReason.STOP, text=text
    )
    assert CustomFunction("custom_reward:quick_win")(problem, completion) == GAMES[text]


def test_custom_reward_as_trl_calls_it() -> None:
    quick_win = importlib.import_module("custom_reward").quick_win
    many = len(GAMES)
    rewards = quick_win(
        prompts=["n3 n5 n2 goal n16 :"] * many,
        completions=list(GAMES),
        completion_ids=[[1]] * many,
        numbers=[[3, 5, 2]] * many,
        goal=[16] * many,
        trainer_state=None,
    )
    assert rewards == list(GAMES.values())


@pytest.mark.parametrize(
    ("module", "key", "expected"),
    [
        ("custom_rule", "selection.rule", "custom_rule:decisive"),
        ("custom_reward", "rewards.0.path", "custom_reward:quick_win"),
    ],
)
def test_docstring_commands_are_valid(module: str, key: str, expected: str) -> None:
    text = importlib.import_module(module).__doc__ or ""
    (command,) = re.findall(r"^ +forkpoint (train .*)$", text, re.MULTILINE)
    words = shlex.split(command)
    config = load_config(None, [b for a, b in pairwise(words) if a == "--set"])
    value: Any = config
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    assert value == expected
    assert expected not in RULES
    name, _, function = expected.partition(":")
    assert callable(getattr(importlib.import_module(name), function))
