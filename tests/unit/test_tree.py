"""Tree rows: laid out by hand, who sees whom, and what packing promises."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from forkpoint.batching import build_batch
from forkpoint.batching.batch import cut_passes
from forkpoint.batching.padding import wanted_rows
from forkpoint.batching.tree import NOTHING, PROMPT, lay_trees, sizes_of
from forkpoint.policy import attention
from forkpoint.policy.attention import seen_blocks, slot_blocks, visible_to_slots
from forkpoint.policy.live import LiveSet, joined, live_positions, slots_of
from forkpoint.policy.sparse import tree_passes
from forkpoint.types import TokenBatch
from tests.conftest import make_batch, make_group


def wanted_at(batch: TokenBatch, places: list[tuple[int, int]]) -> torch.Tensor:
    """True at the given (sequence, position)."""
    wanted_T = torch.zeros(batch.num_tokens, dtype=torch.bool)
    for sequence, position in places:
        wanted_T |= (batch.sequence_T == sequence) & (batch.position_T == position)
    return wanted_T


def two_groups() -> TokenBatch:
    """Sequences 0, 1 with prompt A of 2 tokens; 2, 3 with prompt B of 3."""
    first = make_group(0, rewards=[1.0, 0.0], lengths=[3, 4], prompt_length=2)
    second = make_group(1, rewards=[1.0, 0.0], lengths=[5, 2], prompt_length=3)
    return build_batch([first, second], advantage="grpo")


def test_a_row_by_hand() -> None:
    batch = two_groups()
    # 0: last wanted at 2, two of its tokens run; 1: at 0, none; 2: at 3, three; 3: dead
    rows = lay_trees(batch, wanted_at(batch, [(0, 0), (0, 2), (1, 0), (2, 3)]), width=20)
    a, b = batch.prompts_B[0].tolist(), batch.prompts_B[2].tolist()
    c0, c2 = batch.completions_B[0].tolist(), batch.completions_B[2].tolist()
    # B's tree of 3 + 3 is longer than A's of 2 + 0 + 2, so it comes first
    assert rows.input_ids_BL.tolist() == [b + c2[:3] + a + c0[:2]]
    assert rows.position_ids_BL.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]]
    assert rows.tree_BL.tolist() == [[0] * 6 + [1] * 4]
    assert rows.branch_BL.tolist() == [[PROMPT] * 3 + [2] * 3 + [PROMPT] * 2 + [0] * 2]
    # wanted rows in the batch's order: (0, 0) and (1, 0) after A's last token, at column 7
    assert rows.column_R.tolist() == [7, 9, 7, 5]
    assert rows.line_R.tolist() == [0, 0, 0, 0]


def test_who_sees_whom_by_hand() -> None:
    batch = two_groups()
    rows = lay_trees(batch, wanted_at(batch, [(0, 1), (1, 2), (2, 1)]), width=20)
    # A, A, 0 (1 token), 1 (2 tokens), B, B, B, 2 (1 token)
    assert rows.branch_BL.tolist() == [[PROMPT, PROMPT, 0, 1, 1, PROMPT, PROMPT, PROMPT, 2]]
    assert rows.visible_BLL()[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1, 1, 1, 1],
    ]


def test_padding_sees_itself_and_nobody_sees_it() -> None:
    batch = two_groups()
    rows = lay_trees(batch, wanted_at(batch, [(1, 3), (2, 4)]), width=7)
    assert rows.tree_BL.tolist() == [[0] * 7, [0] * 5 + [NOTHING] * 2]
    visible = rows.visible_BLL()
    assert not visible[1, :5, 5:].any()
    assert visible[1, 5:].any(dim=1).all()  # a row of nothing visible would be nan


def test_nothing_wanted_leaves_one_empty_row() -> None:
    batch = two_groups()
    rows = lay_trees(batch, torch.zeros(batch.num_tokens, dtype=torch.bool), width=8)
    assert rows.input_ids_BL.tolist() == [[0]]
    assert rows.tree_BL.tolist() == [[NOTHING]]
    assert rows.rows_R.tolist() == []


def test_passes_by_hand() -> None:
    passes = [[0, 1, 2, 3], [4, 5]]
    assert cut_passes(passes, None) == passes
    assert cut_passes(passes, 3) == [[0, 1, 2], [3], [4, 5]]
    assert cut_passes([], 3) == []


@st.composite
def batches(draw: st.DrawFn) -> tuple[TokenBatch, torch.Tensor]:
    """Several groups, some wanted tokens."""
    groups = []
    for serial in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
        rewards = [float(i % 2) for i in range(len(lengths))]
        prompt = draw(st.integers(1, 6))
        groups.append(make_group(serial, rewards, lengths, prompt_length=prompt))
    batch = build_batch(groups, advantage="grpo")
    share = draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return batch, torch.rand(batch.num_tokens, generator=generator) < share


@given(batches(), st.integers(1, 40))
def test_rows_are_a_partition_of_the_live_sequences_within_the_width(
    made: tuple[TokenBatch, torch.Tensor], width: int
) -> None:
    batch, wanted_T = made
    packed = sizes_of(batch, wanted_rows(batch, wanted_T)).pack(width)
    alive = batch.sequence_T[wanted_T].unique().tolist()
    assert sorted(b for row in packed for b in row) == alive
    rows = lay_trees(batch, wanted_T, width)
    for line, row in enumerate(packed):
        used = int((rows.tree_BL[line] != NOTHING).sum())
        assert used <= width or len(row) == 1


@given(batches(), st.integers(1, 40), st.data())
def test_some_rows_packed_once_more_are_as_many_rows(
    made: tuple[TokenBatch, torch.Tensor], width: int, data: st.DataObject
) -> None:
    batch, wanted_T = made
    packed = sizes_of(batch, wanted_rows(batch, wanted_T)).pack(width)
    if not packed:
        return
    some = data.draw(st.lists(st.sampled_from(packed), min_size=1, unique_by=lambda row: row[0]))
    chosen = [b for row in packed if row in some for b in row]
    part = batch.take(chosen)
    again = sizes_of(part, wanted_rows(part, wanted_T[batch.rows_of(chosen)])).pack(width)
    assert len(again) <= len(some)


@given(batches(), st.integers(1, 40))
def test_each_wanted_token_is_read_behind_exactly_what_stands_before_it(
    made: tuple[TokenBatch, torch.Tensor], width: int
) -> None:
    batch, wanted_T = made
    rows = lay_trees(batch, wanted_T, width)
    visible = rows.visible_BLL()
    for row, line, column in zip(
        rows.rows_R.tolist(), rows.line_R.tolist(), rows.column_R.tolist(), strict=True
    ):
        b, position = int(batch.sequence_T[row]), int(batch.position_T[row])
        before = torch.cat([batch.prompts_B[b], batch.completions_B[b][:position]])
        seen = visible[line, column]
        assert rows.input_ids_BL[line, seen].tolist() == before.tolist()
        assert rows.position_ids_BL[line, seen].tolist() == list(range(len(before)))


def test_prompts_are_shared_in_the_batch_that_gradients_are_tested_on() -> None:
    batch = make_batch()
    every_T = torch.ones(batch.num_tokens, dtype=torch.bool)
    rows = lay_trees(batch, every_T, width=10_000)
    prompts = {tuple(p.tolist()) for p in batch.prompts_B}
    assert len(prompts) < batch.num_sequences
    run = sum(len(p) for p in prompts) + sum(len(c) - 1 for c in batch.completions_B)
    assert rows.input_ids_BL.numel() == run


@given(
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4), min_size=1, max_size=3),
    width=st.sampled_from([6, 20, 60]),
    block=st.sampled_from([1, 2, 3, 8]),
)
def test_blocks_hold_all_that_is_seen(lengths: list[list[int]], width: int, block: int) -> None:
    groups = [
        make_group(serial, [float(i % 2) for i in range(len(own))], own, prompt_length=2 + serial)
        for serial, own in enumerate(lengths)
    ]
    batch = build_batch(groups, advantage="grpo")
    rows = lay_trees(batch, torch.ones(batch.num_tokens, dtype=torch.bool), width)
    visible_BLL = rows.visible_BLL() & (rows.tree_BL != NOTHING)[:, :, None]
    partly_BNN, wholly_BNN = seen_blocks(rows, block)
    assert not (partly_BNN & wholly_BNN).any()
    count = partly_BNN.shape[1]
    for line in range(len(visible_BLL)):
        for query in range(count):
            for key in range(count):
                seen = visible_BLL[line, query * block : (query + 1) * block]
                seen = seen[:, key * block : (key + 1) * block]
                assert bool(seen.any()) <= bool((partly_BNN | wholly_BNN)[line, query, key])
                assert bool(wholly_BNN[line, query, key]) <= bool(seen.all())


@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    width=st.sampled_from([1, 40, 100]),
    block=st.sampled_from([2, 16]),
    seed=st.integers(0, 20),
)
@settings(max_examples=15)
def test_the_block_mask_of_slots_is_the_dense_one(
    lengths: list[int], width: int, block: int, seed: int
) -> None:
    groups = [make_group(0, [1.0] + [0.0] * (len(lengths) - 1), lengths, prompt_length=9)]
    batch = build_batch(groups, advantage="grpo")
    wanted_T = torch.rand(batch.num_tokens, generator=torch.Generator().manual_seed(seed)) < 0.4
    rows = lay_trees(batch, wanted_T, width)
    live = LiveSet(kind="random", fraction=0.6)
    live_BL = live_positions(rows, live)
    queries, constant = slots_of(live_BL), slots_of((rows.tree_BL != NOTHING) & ~live_BL)
    keys = joined(constant, queries)
    dense_BSK = visible_to_slots(rows, queries, keys)
    # by hand: a token sees what it sees in the row, wherever that key stands now
    visible_BLL = rows.visible_BLL()
    for line, slot in queries.filled_BS.nonzero().tolist():
        column = int(queries.columns_BS[line, slot])
        seen = [
            int(keys.columns_BS[line, place])
            for place in dense_BSK[line, slot].nonzero().flatten().tolist()
        ]
        assert sorted(seen) == visible_BLL[line, column].nonzero().flatten().tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        mask = slot_blocks(rows, queries, keys)
    lines, slots, places = dense_BSK.shape
    line, slot, key = torch.meshgrid(*map(torch.arange, (lines, slots, places)), indexing="ij")
    sees_BSK = mask.mask_mod(line, torch.zeros_like(line), slot, key)
    assert torch.equal(sees_BSK, dense_BSK)
    blocks = {}
    for kind in ("kv", "full_kv"):
        counts, first = getattr(mask, f"{kind}_num_blocks"), getattr(mask, f"{kind}_indices")
        listed = torch.arange(first.shape[-1]) < counts[..., None]
        blocks[kind] = torch.zeros_like(listed).scatter_(3, first.long(), listed)[:, 0]
    partly, wholly = (
        x.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :slots, :places]
        for x in (blocks["kv"], blocks["full_kv"])
    )
    assert not (partly & wholly).any()
    assert bool((dense_BSK <= (partly | wholly)).all())
    assert bool((wholly <= dense_BSK).all())


def test_full_blocks_by_hand() -> None:
    batch = build_batch([make_group(0, [1.0, 0.0], [7, 8], prompt_length=4)], advantage="grpo")
    # a prompt of 4, then 6 and 7 tokens: in blocks of two columns PP|AAA|BBBB, one past the end
    rows = lay_trees(batch, torch.ones(batch.num_tokens, dtype=torch.bool), 20)
    partly, wholly = seen_blocks(rows, 2)
    assert wholly[0].int().tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    # the diagonal, and what the last block's one token sees
    last = [1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert partly[0].int().tolist() == [*torch.eye(9).int().tolist()[:8], last]


def test_rows_of_one_sequence_each_are_plain() -> None:
    batch = two_groups()
    every_T = torch.ones(batch.num_tokens, dtype=torch.bool)
    assert lay_trees(batch, every_T, 1).plain
    assert not lay_trees(batch, every_T, 12).plain
    assert lay_trees(batch, wanted_at(batch, [(1, 3)]), 12).plain
    assert lay_trees(batch, every_T & False, 12).plain


@given(
    lengths=st.lists(st.integers(1, 60), min_size=2, max_size=9),
    width=st.integers(10, 70),
    most=st.integers(10, 300),
)
def test_a_pass_with_a_mask_is_no_wider_than_a_tree_row(
    lengths: list[int], width: int, most: int
) -> None:
    width = min(width, most)  # as PolicyModule has it
    groups = [make_group(0, [1.0] + [0.0] * (len(lengths) - 1), lengths, prompt_length=4)]
    batch = build_batch(groups, advantage="grpo")
    every_T = torch.ones(batch.num_tokens, dtype=torch.bool)
    passes = tree_passes(batch, every_T, most, None, width=width)
    assert sorted(b for one in passes for b in one) == list(range(batch.num_sequences))
    for one in passes:
        part = batch.take(one)
        rows = lay_trees(part, torch.ones(part.num_tokens, dtype=torch.bool), width)
        lines, columns = rows.input_ids_BL.shape
        assert rows.plain or columns <= width
        assert lines * columns <= most or len(one) == 1
