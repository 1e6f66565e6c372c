"""Nothing outside of attention's kernel grows with the square of a sequence's length."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from forkpoint.batching.batch import lay_out
from forkpoint.batching.tree import NOTHING, lay_trees
from forkpoint.policy.attention import BLOCK, slot_blocks, tree_blocks
from forkpoint.policy.body import enable_checkpointing
from forkpoint.policy.live import joined, slots_of, wanted_positions
from forkpoint.policy.module import PolicyModule
from forkpoint.types import TokenBatch
from tests.conftest import VOCABULARY, tiny_model


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage().nbytes() // x.element_size()  # a view makes nothing
                self.elements = max(self.elements, min(x.numel(), storage))
        return found


def completions_of(lengths: list[int], prompt_length: int = 20) -> TokenBatch:
    """Random completions of one prompt."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> torch.Tensor:
        return torch.randint(2, VOCABULARY, (count,), generator=generator)

    prompt = ids(prompt_length)
    return lay_out([prompt] * len(lengths), [ids(n) for n in lengths], range(len(lengths)))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rows", ["tree", "padded"])
def test_the_largest_tensor_of_a_long_sequence_is_linear(rows: str, checkpointing: bool) -> None:
    model = tiny_model()
    if checkpointing:
        enable_checkpointing(model)
    policy = PolicyModule(model, gradient="sparse", temperature=1.0, rows=rows)
    found = []
    for length in (1000, 3000):
        batch = completions_of([length])
        wanted_T = batch.position_T % 5 == 4
        with Largest() as largest:
            stats = policy(batch, wanted_T)
            (stats.logprobs_R.sum() + stats.entropies_R.sum()).backward()
        found.append(largest.elements)
    assert found[0] < 100 * 1000
    assert found[1] < 3.1 * found[0]


def test_a_long_sequence_beside_short_ones_needs_no_mask_of_its_width() -> None:
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    assert policy.row_tokens < 100
    batch = completions_of([3000, 5, 5, 5, 5], prompt_length=4)
    every_T = torch.ones(batch.num_tokens, dtype=torch.bool)
    passes = policy.passes(batch, every_T, max_tokens=6000)
    assert passes[0] == [0]
    with Largest() as largest:
        for sequences in passes:
            policy(batch.take(sequences), every_T[batch.rows_of(sequences)])
    assert largest.elements < 100 * 3000


def test_block_masks_are_made_from_numbers_of_trees_and_branches_alone() -> None:
    batch = completions_of([5000] * 4, prompt_length=480)
    wanted_T = batch.position_T % 5 == 4
    rows = lay_trees(batch, wanted_T, 20_480)
    width = rows.input_ids_BL.shape[1]
    assert rows.input_ids_BL.shape == (1, 480 + 4 * 4999)
    with Largest() as largest:
        tree_blocks(rows)
    assert largest.elements < 4 * width
    queries = slots_of(wanted_positions(rows))
    constant = slots_of((rows.tree_BL != NOTHING) & ~wanted_positions(rows))
    keys = joined(constant, queries)
    with Largest() as largest:
        slot_blocks(rows, queries, keys)
    assert keys.columns_BS.shape[1] == width
    assert largest.elements < 1.1 * BLOCK * width
