"""How the entropies of a recorded step are spread, and which tokens have most of it."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.report.steps import EntropyProfile, StepFile, profiles, step_files, token_table
from forkpoint.runs.completions import StoredCompletion, write_completions
from tests.report_runs import make_row


def step_file(root: Path, rows: list[StoredCompletion], step: int = 1) -> StepFile:
    path = root / f"step_{step:05d}.parquet"
    write_completions(path, rows)
    return StepFile(step, path)


def profile_of(root: Path, values: list[float]) -> tuple[list[float], EntropyProfile]:
    row = make_row(tokens=["x"] * len(values), entropies=values)
    edges, (found,) = profiles([step_file(root, [row], 4)], {4: 0.25})
    return edges.tolist(), found


def test_histogram_counts_by_hand(tmp_path: Path) -> None:
    # Highest 0.11: bins of 0.025: [0, .025) [.025, .05) [.05, .075) [.075, .1) [.1, .125)
    edges, found = profile_of(tmp_path, [0, 0.02, 0.026, 0.08, 0.11])
    assert edges == pytest.approx([0, 0.025, 0.05, 0.075, 0.1, 0.125])
    assert found.counts == (2, 1, 0, 1, 1)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 30, width=32), min_size=1, max_size=9))
def test_bins_hold_every_entropy(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    edges, found = profile_of(tmp_path_factory.mktemp("step"), values)
    assert edges[0] == 0
    assert edges[-1] > max(values) * (1 - 1e-6)
    assert len(edges) == len(found.counts) + 1 <= 81
    assert sum(found.counts) == len(values)


def test_profile_by_hand(tmp_path: Path) -> None:
    _, profile = profile_of(tmp_path, [0.0, 0.005, 0.015, 0.285, 0.3, 1.395])
    assert (profile.step, profile.tokens, profile.threshold) == (4, 6, 0.25)
    assert profile.mean == pytest.approx(2.0 / 6)
    # the smallest value with so many % of the six at or below it: the 3rd, the 5th, the 6th
    found = (profile.p50, profile.p80, profile.p95)
    assert found == pytest.approx((0.015, 0.3, 1.395))
    assert profile.share_below_001 == pytest.approx(2 / 6)
    # ceil(6 / 5) = 2 tokens: (1.395 + 0.3) / 2.0
    assert profile.share_of_top_fifth == pytest.approx(1.695 / 2.0)


def test_token_table_by_hand(tmp_path: Path) -> None:
    rows = [
        make_row(
            tokens=["x", "y", "x"],
            ids=[7, 8, 7],
            entropies=[1.0, 0.1, 2.0],
            selected=[True, False, False],
        ),
        make_row(tokens=["x", "z"], ids=[7, 9], entropies=[3.0, 9.0], accepted=False),
        make_row(tokens=["y"], ids=[8], entropies=[0.3]),
    ]
    (x, y), least = token_table(step_file(tmp_path, rows), minimum=2)  # z occurs once
    assert least == 2
    assert (x.text, x.token_id, x.count, x.mean, x.p90) == ("x", 7, 3, 2.0, 3.0)
    assert x.share_selected == 0.5  # of the two in the accepted group
    assert (y.text, y.count, y.share_selected) == ("y", 2, 0.0)
    assert y.mean == pytest.approx(0.2)


def test_the_table_wants_ten_occurrences_or_one_in_two_thousand(tmp_path: Path) -> None:
    def table(repeats: int) -> tuple[list[str], int]:
        rows = [
            make_row(tokens=[f"x{i}"] * n, ids=[i] * n, entropies=[1.0] * n)
            for i, n in enumerate((9, 10, repeats))
        ]
        lines, least = token_table(step_file(tmp_path, rows))
        return [str(line.token_id) for line in lines], least

    assert table(100) == (["1", "2"], 10)
    # 20 019 tokens: ceil(20 019 / 2000) = 11
    assert table(20_000) == (["2"], 11)


def test_unknown_entropies_are_left_out_of_every_number(tmp_path: Path) -> None:
    rows = [
        make_row(entropies=None),
        make_row(tokens=["a", "b"], entropies=[math.nan, 0.5], ids=[1, 2]),
    ]
    file = step_file(tmp_path, rows)
    assert np.concatenate(list(file.entropies())).tolist() == [0.5]
    assert [line.token_id for line in token_table(file, 1)[0]] == [2]
    none = step_file(tmp_path, rows[:1], 2)
    assert not none.has_entropies
    assert [profile.step for profile in profiles([file, none], {})[1]] == [1]


def test_the_first_and_the_last_step_are_found(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        step_file(tmp_path, [], step)
    (tmp_path / "step_x.parquet").write_bytes(b"")
    assert [file.step for file in step_files(tmp_path)] == [3, 100]
