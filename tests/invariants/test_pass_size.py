"""``micro_batch_tokens`` is a bound: no pass is larger, unless one sequence alone is."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from forkpoint.batching import build_batch
from forkpoint.policy import PolicyModule
from forkpoint.types import TokenBatch
from tests.conftest import make_group, tiny_model

MODEL = tiny_model()


@st.composite
def batches(draw: st.DrawFn) -> TokenBatch:
    groups = [
        make_group(
            serial,
            rewards=[1.0] + [0.0] * (len(lengths) - 1),
            lengths=lengths,
            prompt_length=draw(st.integers(1, 15)),
        )
        for serial, lengths in enumerate(
            draw(st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=8), max_size=5))
        )
    ]
    return build_batch(groups, advantage="grpo", zero_advantage_in_pool=True)


@pytest.mark.parametrize(
    ("gradient", "rows"),
    [("dense", "padded"), ("sparse", "padded"), ("sparse", "tree"), ("local", "tree")],
)
@given(
    batch=batches(),
    most=st.integers(1, 300),
    share=st.sampled_from([0.05, 0.2, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_no_pass_is_larger(
    gradient: str, rows: str, batch: TokenBatch, most: int, share: float, seed: int
) -> None:
    policy = PolicyModule(MODEL, gradient=gradient, temperature=1.0, rows=rows, row_tokens=most)
    wanted_T = torch.rand(batch.num_tokens, generator=torch.Generator().manual_seed(seed)) < share
    seen = 0
    for sequences in policy.passes(batch, wanted_T, max_tokens=most):
        part, wanted = batch.take(sequences), wanted_T[batch.rows_of(sequences)]
        seen += int(wanted.sum())
        stats = policy(part, wanted)
        assert max(stats.body_tokens, stats.cached_tokens) <= most or len(sequences) == 1
    assert seen == wanted_T.sum()
