"""Rollouts laid end to end, cut into parts, and laid out as a rectangle: aligned by hand."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forkpoint.advantages import STD_EPSILON
from forkpoint.batching import build_batch, pad_rows, split_microbatches, split_minibatches
from forkpoint.types import (
    Completion,
    FinishReason,
    Group,
    Problem,
    Prompt,
    Rollout,
    Score,
    TokenBatch,
)
from tests.conftest import make_group

PAD, EOS = 0, 1


def rollout(
    reward: float | None,
    token_ids: Sequence[int],
    *,
    captured: bool = True,
    finish: FinishReason = FinishReason.STOP,
) -> Rollout:
    """A completion whose log-probabilities are minus its token ids, so that they tell themselves.

    Entropies are a tenth of the ids, if the engine ``captured`` them.
    """
    completion = Completion(
        token_ids=tuple(token_ids),
        logprobs=tuple(-float(i) for i in token_ids),
        entropies=tuple(i / 10 for i in token_ids) if captured else None,
        finish_reason=finish,
        text="",
    )
    return Rollout(completion=completion, score=Score(reward=reward))


def group(serial: int, prompt: Sequence[int], *rollouts: Rollout) -> Group:
    problem = Problem(id=f"p{serial}", prompt="")
    return Group(
        prompt=Prompt(problem=problem, token_ids=tuple(prompt)), serial=serial, rollouts_G=rollouts
    )


def lists(batch: TokenBatch) -> dict[str, Any]:
    """Every stream that is set, as lists."""
    values = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return {name: v.tolist() for name, v in values.items() if isinstance(v, torch.Tensor)}


# ---- build_batch --------------------------------------------------------------------------------


def test_streams_are_aligned() -> None:
    batch = build_batch(
        [
            group(5, [50, 51], rollout(1.0, [11, 12, 13]), rollout(0.0, [21])),
            group(2, [20], rollout(0.0, [31, 32]), rollout(1.0, [41, 42])),
        ],
        advantage="dr_grpo",
    )
    # group 2 comes first: serial orders, not arrival. Two rewards 0 and 1: advantages -+ 0.5.
    assert [p.tolist() for p in batch.prompts_B] == [[20], [20], [50, 51], [50, 51]]
    assert [c.tolist() for c in batch.completions_B] == [[31, 32], [41, 42], [11, 12, 13], [21]]
    token_ids = [31, 32, 41, 42, 11, 12, 13, 21]
    assert lists(batch) == {
        "sequence_ids_B": [4, 5, 10, 11],  # serial * 2 + sample
        "token_ids_T": token_ids,
        "sequence_T": [0, 0, 1, 1, 2, 2, 2, 3],
        "position_T": [0, 1, 0, 1, 0, 1, 2, 0],
        "advantages_T": [-0.5, -0.5, 0.5, 0.5, 0.5, 0.5, 0.5, -0.5],
        "mask_T": [True] * 8,
        "pool_T": [True] * 8,
        "rollout_logprobs_T": [-float(i) for i in token_ids],
        "rollout_entropies_T": pytest.approx([i / 10 for i in token_ids]),
    }
    assert (batch.num_sequences, batch.num_tokens) == (4, 8)


def test_mask_comes_from_lengths_and_not_from_token_ids() -> None:
    # pad and end-of-sequence ids inside a completion are sampled tokens like any other
    batch = build_batch(
        [group(0, [PAD, 7], rollout(1.0, [PAD, EOS, 9, PAD, EOS]), rollout(0.0, [EOS, EOS]))],
        advantage="grpo",
    )
    assert batch.token_ids_T.tolist() == [PAD, EOS, 9, PAD, EOS, EOS, EOS]
    assert batch.mask_T.tolist() == [True] * 7
    assert batch.pool_T.tolist() == [True] * 7
    laid = pad_rows(batch, batch.mask_T, drop_and_cut=False)
    assert laid.input_ids_BL.tolist() == [
        [PAD, 7, PAD, EOS, 9, PAD, EOS],
        [PAD, 7, EOS, EOS, 0, 0, 0],
    ]
    assert len(laid.rows_R) == 7


def test_sample_without_a_reward_is_left_out_and_not_counted_as_zero() -> None:
    batch = build_batch(
        [group(3, [5], rollout(1.0, [2]), rollout(None, [3, 4]), rollout(0.0, [6, 7]))],
        advantage="dr_grpo",
    )
    # the mean is that of two rewards, 1/2, and not of three, 1/3
    assert batch.advantages_T.tolist() == [0.5, -0.5, -0.5]
    assert batch.token_ids_T.tolist() == [2, 6, 7]
    # ids keep the place of the one that is missing: serial * 3 + sample
    assert batch.sequence_ids_B.tolist() == [9, 11]


def test_empty_completion_counts_in_its_group_but_holds_no_sequence() -> None:
    batch = build_batch(
        [group(0, [5], rollout(1.0, []), rollout(0.0, [8]), rollout(0.0, [9]))],
        advantage="dr_grpo",
    )
    assert batch.num_sequences == 2
    assert batch.token_ids_T.tolist() == [8, 9]
    assert batch.advantages_T.tolist() == pytest.approx([-1 / 3, -1 / 3])


def test_advantages_are_of_the_named_estimator() -> None:
    groups = [group(0, [5], rollout(1.0, [2]), rollout(0.0, [3]))]
    # rewards 1 and 0: centred +-1/2, deviation sqrt(1/4 + 1/4) = sqrt(1/2); rloo: 1 - 0, 0 - 1
    std = 0.5**0.5 + STD_EPSILON
    expected = {"grpo": [0.5 / std, -0.5 / std], "dr_grpo": [0.5, -0.5], "rloo": [1.0, -1.0]}
    for kind, values in expected.items():
        assert build_batch(groups, advantage=kind).advantages_T.tolist() == pytest.approx(values)


@pytest.mark.parametrize("zero_advantage_in_pool", [False, True])
@pytest.mark.parametrize("truncated", ["keep", "mask"])
def test_pool_and_mask(zero_advantage_in_pool: bool, truncated: str) -> None:
    cut = FinishReason.LENGTH
    batch = build_batch(
        [
            group(0, [5], rollout(1.0, [2, 3], finish=cut), rollout(0.0, [4])),
            group(1, [5], rollout(1.0, [6], finish=cut), rollout(1.0, [7, 8])),
        ],
        advantage="grpo",
        truncated=truncated,
        zero_advantage_in_pool=zero_advantage_in_pool,
    )
    counts = truncated == "keep"
    dead = zero_advantage_in_pool
    assert batch.mask_T.tolist() == [counts, counts, True, counts, True, True]
    assert batch.pool_T.tolist() == [counts, counts, True, counts and dead, dead, dead]


def test_entropies_are_there_only_if_every_completion_has_them() -> None:
    seen, unseen = rollout(1.0, [2]), rollout(0.0, [3], captured=False)
    assert (
        build_batch([group(0, [5], seen, seen)], advantage="grpo").rollout_entropies_T is not None
    )
    assert build_batch([group(0, [5], seen, unseen)], advantage="grpo").rollout_entropies_T is None


def test_batch_of_nothing_is_empty_and_typed() -> None:
    for groups in ([], [group(0, [5], rollout(None, [2]))]):
        batch = build_batch(groups, advantage="grpo")
        assert (batch.num_sequences, batch.num_tokens) == (0, 0)
        assert all(values == [] for values in lists(batch).values())
        assert batch.pool_T.dtype == batch.mask_T.dtype == torch.bool
        assert batch.token_ids_T.dtype == batch.position_T.dtype == torch.int64
        assert split_minibatches(batch, 4) == split_microbatches(batch, max_tokens=10) == []


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_arrival_order_changes_nothing_and_ids_are_unique(
    lengths: list[list[int]], shuffler: Any
) -> None:
    groups = [make_group(s, [1.0] + [0.0] * (len(n) - 1), n) for s, n in enumerate(lengths)]
    expected = build_batch(groups, advantage="grpo")
    shuffler.shuffle(groups)
    assert lists(build_batch(groups, advantage="grpo")) == lists(expected)
    assert len(set(expected.sequence_ids_B.tolist())) == sum(len(n) for n in lengths)


# ---- splits -------------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def batch_of_lengths(lengths: Sequence[int], prompt_length: int = 3) -> TokenBatch:
    rewards = [1.0] + [0.0] * (len(lengths) - 1)
    made = make_group(0, rewards, lengths, prompt_length=prompt_length)
    return build_batch([made], advantage="grpo")


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 20))
def test_minibatches_are_even_runs_in_order(lengths: list[int], count: int) -> None:
    parts = split_minibatches(batch_of_lengths(lengths), count)
    assert [b for part in parts for b in part] == list(range(len(lengths)))
    assert len(parts) == min(count, len(lengths))
    sizes = {len(part) for part in parts}
    assert max(sizes) - min(sizes) <= 1


def test_minibatches_by_hand() -> None:
    # bounds at 7 * 0/3, 7 * 1/3, 7 * 2/3, 7 rounded down: 0, 2, 4, 7
    assert split_minibatches(batch_of_lengths([1] * 7), 3) == [[0, 1], [2, 3], [4, 5, 6]]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 80))
def test_microbatches_are_a_partition_within_the_budget(
    lengths: list[int], max_tokens: int
) -> None:
    batch = batch_of_lengths(lengths)
    parts = split_microbatches(batch, max_tokens=max_tokens)
    assert sorted(b for part in parts for b in part) == list(range(len(lengths)))
    whole = [3 + n for n in lengths]
    for part in parts:
        assert len(part) == 1 or len(part) * max(whole[b] for b in part) <= max_tokens
    # longest first, so memory peaks in the first pass; and none had room for one more, unless it
    # would have been mostly padding
    order = [whole[b] for part in parts for b in part]
    assert order == sorted(order, reverse=True)

    def padding(part: list[int]) -> int:
        return sum(whole[part[0]] - whole[b] for b in part)

    for part, following in itertools.pairwise(parts):
        assert padding(part) <= max_tokens / 16
        more = [*part, following[0]]
        assert len(more) * whole[part[0]] > max_tokens or padding(more) > max_tokens / 16


def test_little_padding_by_hand() -> None:
    batch = batch_of_lengths([30, 29, 28, 2])
    # of 160 tokens 10 may be padding: 33, 32, 31 bring 3; 5 would bring 28 more
    assert split_microbatches(batch, max_tokens=160) == [[0, 1, 2], [3]]
    assert split_microbatches(batch, max_tokens=600) == [[0, 1, 2, 3]]


def test_microbatches_by_hand() -> None:
    # prompt + completion: 5, 9, 4, 9, 13. Longest first within 20 padded tokens:
    # 13 alone (2 * 13 > 20); 9 + 9 (18, and 3 * 9 > 20); 5 + 4 (2 * 5)
    batch = batch_of_lengths([2, 6, 1, 6, 10])
    assert split_microbatches(batch, max_tokens=20) == [[4], [1, 3], [0, 2]]
    assert split_microbatches(batch, max_tokens=1) == [[4], [1], [3], [0], [2]]


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 15))
def test_microbatches_of_a_fixed_number_are_runs_in_order(lengths: list[int], n: int) -> None:
    parts = split_microbatches(batch_of_lengths(lengths), max_tokens=1, sequences=n)
    assert [b for part in parts for b in part] == list(range(len(lengths)))
    assert all(len(part) == n for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= n


# ---- pad_rows -----------------------------------------------------------------------------------


def hand_batch() -> TokenBatch:
    return build_batch(
        [
            group(0, [70, 71, 72], rollout(1.0, [11, 12, 13, 14]), rollout(0.0, [21])),
            group(1, [80], rollout(1.0, [31, 32]), rollout(0.0, [41, 42, 43])),
        ],
        advantage="grpo",
    )


def wanted(*rows: int) -> torch.Tensor:
    wanted_T = torch.zeros(10, dtype=torch.bool)
    wanted_T[list(rows)] = True
    return wanted_T


def test_whole_sequences_are_padded_on_the_right() -> None:
    laid = pad_rows(hand_batch(), wanted(0, 4, 6, 9), drop_and_cut=False)
    assert laid.input_ids_BL.tolist() == [
        [70, 71, 72, 11, 12, 13, 14],
        [70, 71, 72, 21, 0, 0, 0],
        [80, 31, 32, 0, 0, 0, 0],
        [80, 41, 42, 43, 0, 0, 0],
    ]
    # each is predicted one column to its left: 11 at 2, 21 at 2, 32 (position 1) at 1, 43 at 2
    assert laid.rows_R.tolist() == [0, 4, 6, 9]
    assert laid.line_R.tolist() == [0, 1, 2, 3]
    assert laid.column_R.tolist() == [2, 2, 1, 2]


def test_dead_sequences_are_dropped_and_tails_cut() -> None:
    # wanted: 11 and 13 of the first, 41 of the last sequence. The last wanted token is predicted
    # and never read, so the first line ends with 12, and the other is its prompt alone.
    laid = pad_rows(hand_batch(), wanted(0, 2, 7), drop_and_cut=True)
    assert laid.input_ids_BL.tolist() == [[70, 71, 72, 11, 12], [80, 0, 0, 0, 0]]
    assert laid.rows_R.tolist() == [0, 2, 7]
    assert laid.line_R.tolist() == [0, 0, 1]
    assert laid.column_R.tolist() == [2, 4, 0]


def test_nothing_wanted() -> None:
    laid = pad_rows(hand_batch(), wanted(), drop_and_cut=True)
    assert laid.input_ids_BL.numel() == 0
    assert laid.rows_R.tolist() == laid.line_R.tolist() == laid.column_R.tolist() == []
    whole = pad_rows(hand_batch(), wanted(), drop_and_cut=False)
    assert whole.input_ids_BL.tolist()[1] == [70, 71, 72, 21, 0, 0, 0]


@settings(deadline=None)
@given(st.data(), LENGTHS, st.booleans())
def test_each_wanted_token_is_predicted_after_all_that_stands_before_it(
    data: st.DataObject, lengths: list[int], drop_and_cut: bool
) -> None:
    batch = batch_of_lengths(lengths)
    bits = st.lists(st.booleans(), min_size=batch.num_tokens, max_size=batch.num_tokens)
    wanted_T = torch.tensor(data.draw(bits))
    laid = pad_rows(batch, wanted_T, drop_and_cut=drop_and_cut)
    assert laid.rows_R.tolist() == wanted_T.nonzero().flatten().tolist()
    for row, line, column in zip(laid.rows_R, laid.line_R, laid.column_R, strict=True):
        b, position = int(batch.sequence_T[row]), int(batch.position_T[row])
        before = [*batch.prompts_B[b].tolist(), *batch.completions_B[b][:position].tolist()]
        assert laid.input_ids_BL[line, : column + 1].tolist() == before
    if drop_and_cut:
        assert len(laid.input_ids_BL) == len(set(laid.line_R.tolist()))
        widest = max((int(c) + 1 for c in laid.column_R), default=0)
        assert laid.input_ids_BL.shape[1] == widest
