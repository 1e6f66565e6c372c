"""The records: metrics add up, and a batch keeps its streams aligned."""

import dataclasses
import itertools
import math
import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkpoint.types import FinishReason, Metric, Problem, TokenBatch

# ---- Metric -------------------------------------------------------------------------------------


def total(metrics: Sequence[Metric]) -> Metric:
    return sum(metrics, start=Metric(0.0, 0))


def test_metric_is_a_mean_that_adds_up() -> None:
    # tokens 1, 2, 6 in one micro-batch and 3 in another: mean of four is 12 / 4
    both = Metric(1 + 2 + 6, 3) + Metric(3, 1)
    assert both == Metric(12, 4)
    assert both.mean == 3.0


def test_metric_does_not_fall_for_the_mean_of_means() -> None:
    # one sequence of 9 right answers out of 9 and one of 0 out of 1: 9 / 10, not (1 + 0) / 2
    parts = [Metric(9, 9), Metric(0, 1)]
    assert sum(part.mean for part in parts) / len(parts) == 0.5
    assert total(parts).mean == 0.9


def test_metric_of_nothing_is_nan_and_changes_nothing() -> None:
    assert math.isnan(Metric(0.0, 0).mean)
    assert Metric(5.0, 2) + Metric(0.0, 0) == Metric(5.0, 2)


@given(st.lists(st.integers(-1000, 1000), min_size=1), st.data())
def test_metric_is_the_same_for_any_cut(values: list[int], data: st.DataObject) -> None:
    where = data.draw(st.lists(st.integers(0, len(values)), max_size=4).map(sorted))
    bounds = [0, *where, len(values)]
    parts = [values[a:b] for a, b in itertools.pairwise(bounds)]
    metric = total([Metric(sum(part), len(part)) for part in parts])
    assert metric == Metric(sum(values), len(values))
    assert metric.mean == sum(values) / len(values)


# ---- TokenBatch ---------------------------------------------------------------------------------


def batch() -> TokenBatch:
    """Three sequences of 2, 1 and 3 tokens; every stream tells which token it belongs to."""
    tokens_T = torch.tensor([10, 11, 20, 30, 31, 32])
    return TokenBatch(
        prompts_B=[torch.tensor([1]), torch.tensor([2, 2]), torch.tensor([3])],
        completions_B=[tokens_T[:2], tokens_T[2:3], tokens_T[3:]],
        sequence_ids_B=torch.tensor([100, 200, 300]),
        token_ids_T=tokens_T,
        sequence_T=torch.tensor([0, 0, 1, 2, 2, 2]),
        position_T=torch.tensor([0, 1, 0, 0, 1, 2]),
        advantages_T=tokens_T / 1.0,
        mask_T=tokens_T != 11,
        pool_T=tokens_T > 20,
        rollout_logprobs_T=-tokens_T / 1.0,
        old_logprobs_T=tokens_T / 10,
        weights_T=tokens_T / 100,
    )


def test_rows_of_sequences_in_the_order_asked_for() -> None:
    assert batch().rows_of([2, 0]).tolist() == [3, 4, 5, 0, 1]
    assert batch().rows_of([1]).tolist() == [2]
    assert batch().rows_of([]).tolist() == []


def test_take_moves_every_stream_with_its_sequence() -> None:
    taken = batch().take([2, 0])
    tokens = [30, 31, 32, 10, 11]
    assert [p.tolist() for p in taken.prompts_B] == [[3], [1]]
    assert [c.tolist() for c in taken.completions_B] == [[30, 31, 32], [10, 11]]
    assert taken.sequence_ids_B.tolist() == [300, 100]
    assert taken.sequence_T.tolist() == [0, 0, 0, 1, 1]  # numbered anew
    assert taken.position_T.tolist() == [0, 1, 2, 0, 1]
    streams = {
        f.name: getattr(taken, f.name) for f in dataclasses.fields(taken) if f.name.endswith("_T")
    }
    assert {n: s.tolist() for n, s in streams.items() if s is not None} == {
        "token_ids_T": tokens,
        "sequence_T": [0, 0, 0, 1, 1],
        "position_T": [0, 1, 2, 0, 1],
        "advantages_T": [float(t) for t in tokens],
        "mask_T": [True, True, True, True, False],
        "pool_T": [True, True, True, False, False],
        "rollout_logprobs_T": [-float(t) for t in tokens],
        "old_logprobs_T": pytest.approx([t / 10 for t in tokens]),
        "weights_T": pytest.approx([t / 100 for t in tokens]),
    }
    assert taken.old_entropies_T is None


def test_take_of_a_take_and_of_nothing() -> None:
    again = batch().take([2, 0, 1]).take([2, 0])
    assert again.token_ids_T.tolist() == [20, 30, 31, 32]
    assert again.sequence_ids_B.tolist() == [200, 300]
    nothing = batch().take([])
    assert (nothing.num_sequences, nothing.num_tokens) == (0, 0)
    assert nothing.sequence_T.tolist() == nothing.sequence_ids_B.tolist() == []


def test_with_streams_leaves_the_original_as_it_was() -> None:
    first = batch()
    changed = first.with_streams(weights_T=torch.ones(6), old_logprobs_T=None)
    assert changed.weights_T is not None
    assert changed.weights_T.tolist() == [1.0] * 6
    assert changed.old_logprobs_T is None
    assert first.old_logprobs_T is not None
    assert first.weights_T is not None
    assert first.weights_T[0] == pytest.approx(0.1)
    assert changed.token_ids_T is first.token_ids_T


def test_records_are_frozen() -> None:
    problem = Problem(id="a", prompt="x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.id = "b"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch().weights_T = None  # pyright: ignore[reportAttributeAccessIssue]


def test_records_do_not_import_torch() -> None:
    code = "import sys, forkpoint.types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_finish_reasons_are_the_words_of_the_run_directory() -> None:
    assert [str(reason) for reason in FinishReason] == ["stop", "length", "unknown"]
