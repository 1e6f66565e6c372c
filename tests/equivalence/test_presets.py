"""Each published variant of the entropy mask: which tokens it keeps and what it divides by.

TRL is asked itself. The others are written out here from what their papers and documentation say,
in as few lines as they take, on rectangles with a mask as those codes have them. Their whole losses
are in ``test_trl_loss.py`` and ``test_peer_losses.py``.
"""

import math
from collections import Counter
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forkpoint.batching import build_batch, split_microbatches
from forkpoint.config import parse_config
from forkpoint.config.run import RunConfig
from forkpoint.losses import with_coefficients
from forkpoint.selection import scope_groups, select
from forkpoint.types import FinishReason, Group, TokenBatch
from tests.conftest import make_group

JUNK = 50.0
"""The entropy of places that hold no token: higher than any, so that it shows if it competes."""
FRACTIONS = st.sampled_from([0.05, 0.1, 0.2, 0.25, 0.5, 0.8, 1.0])


# ---- cases: random, tie-heavy, padded -----------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn, *, masked: bool = True) -> list[Group]:
    """1 to 4 groups of 2 completions; lengths differ, and so do their places in a rectangle.

    Some groups have no advantage, some are truncated (``masked`` takes those out of the mask).
    """
    ties = st.sampled_from([0.0, 0.125, 0.5, 2.0])
    entropy = draw(st.sampled_from([ties, st.floats(0, 12, width=32)]))
    groups = []
    for serial in range(draw(st.integers(1, 4))):
        rows = draw(st.lists(st.lists(entropy, min_size=1, max_size=9), min_size=2, max_size=2))
        finish = draw(st.sampled_from(FinishReason)) if masked and serial else FinishReason.STOP
        rewards = [1.0, draw(st.sampled_from([0.0, 1.0])) if serial else 0.0]
        lengths = [len(row) for row in rows]
        groups.append(make_group(serial, rewards, lengths, entropies=rows, finish=finish))
    return groups


def preset(name: str, keep_fraction: float, sequences: int = 2) -> RunConfig:
    training = {"micro_batch_sequences": sequences}
    selection = {"preset": name, "keep_fraction": keep_fraction}
    return parse_config({"selection": selection, "training": training})


def selected(groups: list[Group], config: RunConfig) -> tuple[TokenBatch, list[list[int]]]:
    """A mini-batch selected as the preset says, with coefficients; and its micro-batches."""
    batch = build_batch(
        groups,
        advantage=config.advantage.kind,
        truncated="mask",
        zero_advantage_in_pool=config.selection.zero_advantage_in_pool,
        truncated_in_pool=config.selection.truncated_in_pool,
    )
    assert batch.rollout_entropies_T is not None
    sequences = config.training.micro_batch_sequences
    cut = split_microbatches(batch, max_tokens=10_000, sequences=sequences)
    groups_T = scope_groups(batch, config.selection.scope, cut)
    chosen = select(batch, batch.rollout_entropies_T, groups_T, config.selection, seed=0, step=0)
    return with_coefficients(batch, chosen.weights_T, groups_T, config), cut


def rectangle(batch: TokenBatch, values_T: Tensor, fill: float) -> Tensor:
    """The stream as [B, longest completion]."""
    width = max(len(c) for c in batch.completions_B)
    out_BL = torch.full((batch.num_sequences, width), fill)
    out_BL[batch.sequence_T, batch.position_T] = values_T.float()
    return out_BL


def as_rectangles(micro: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Entropies, mask and our kept tokens of a micro-batch, as peers lay them out."""
    assert micro.rollout_entropies_T is not None
    assert micro.weights_T is not None
    entropies_BL = rectangle(micro, micro.rollout_entropies_T, JUNK)
    return (
        entropies_BL,
        rectangle(micro, micro.mask_T, 0.0),
        rectangle(micro, micro.weights_T, 0.0) > 0,
    )


# ---- TRL ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trl_mask() -> Any:
    """TRL's own method, on one process: nothing to pad across processes, nothing to gather."""
    pytest.importorskip("trl")
    from trl.trainer.grpo_trainer import GRPOTrainer

    one_process = SimpleNamespace(
        pad_across_processes=lambda tensor, dim, pad_index: tensor, gather=lambda tensor: tensor
    )
    trainer = SimpleNamespace(accelerator=one_process)

    def mask(entropies_BL: Tensor, mask_BL: Tensor, top_entropy_quantile: float) -> Tensor:
        threshold = 1 - top_entropy_quantile  # as in its _compute_loss
        return GRPOTrainer.get_high_entropy_mask(
            trainer,  # pyright: ignore[reportArgumentType]
            entropies_BL,
            mask_BL,
            threshold,
        )

    return mask


@settings(deadline=None, max_examples=150)
@given(groups=cases(), keep_fraction=FRACTIONS, sequences=st.integers(1, 5))
def test_trl_keeps_what_trl_keeps(
    trl_mask: Any, groups: list[Group], keep_fraction: float, sequences: int
) -> None:
    batch, cut = selected(groups, preset("trl", keep_fraction, sequences))
    assert cut == [
        list(range(a, min(a + sequences, batch.num_sequences)))
        for a in range(0, batch.num_sequences, sequences)
    ]
    for part in cut:
        entropies_BL, mask_BL, ours_BL = as_rectangles(batch.take(part))
        assert torch.equal(trl_mask(entropies_BL, mask_BL, keep_fraction), ours_BL)


def test_trl_keeps_what_trl_keeps_on_many_tokens(trl_mask: Any) -> None:
    # no ties, 4 micro-batches of about 3,000 tokens: also where rounding of the rank matters
    lengths = [[997, 1500], [1201, 1800], [1024, 2048], [1999, 3]]
    groups = [make_group(s, [1.0, 0.0], row) for s, row in enumerate(lengths)]
    for keep_fraction in (0.1, 0.2, 1 / 3, 0.5):
        batch, cut = selected(groups, preset("trl", keep_fraction))
        for part in cut:
            entropies_BL, mask_BL, ours_BL = as_rectangles(batch.take(part))
            assert torch.equal(trl_mask(entropies_BL, mask_BL, keep_fraction), ours_BL)
            expected = keep_fraction * mask_BL.sum()
            assert ours_BL.sum() == pytest.approx(expected, abs=1)


def test_trl_keeps_nothing_of_a_micro_batch_that_is_all_masked(trl_mask: Any) -> None:
    alive = make_group(0, [1.0, 0.0], [3, 3], entropies=[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    dead = make_group(1, [1.0, 0.0], [2, 2], finish=FinishReason.LENGTH)
    batch, cut = selected([alive, dead], preset("trl", 0.5))
    entropies_BL, mask_BL, ours_BL = as_rectangles(batch.take(cut[1]))
    assert trl_mask(entropies_BL, mask_BL, 0.5).sum() == ours_BL.sum() == 0
    assert batch.take(cut[0]).weights_T is not None
    assert batch.take(cut[0]).weights_T.tolist() == [0, 0, 0, 1, 1, 1]


# ---- ms-swift -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(groups=cases(), keep_fraction=FRACTIONS, sequences=st.integers(1, 5))
def test_ms_swift_keeps_what_reaches_the_nan_quantile(
    groups: list[Group], keep_fraction: float, sequences: int
) -> None:
    # of everything sampled: truncated completions are left out afterwards
    batch, cut = selected(groups, preset("ms-swift", keep_fraction, sequences))
    for part in cut:
        micro = batch.take(part)
        entropies_BL, mask_BL, ours_BL = as_rectangles(micro)
        sampled_BL = rectangle(micro, torch.ones(micro.num_tokens), 0.0)
        counted_BL = entropies_BL.masked_fill(sampled_BL == 0, math.nan)
        edge = torch.nanquantile(counted_BL.flatten(), 1 - keep_fraction)
        assert torch.equal((counted_BL >= edge) & (mask_BL > 0), ours_BL)


# ---- the authors' code --------------------------------------------------------------------------


@settings(deadline=None)
@given(groups=cases(), keep_fraction=FRACTIONS, sequences=st.integers(1, 5))
def test_authors_code_keeps_the_top_k_of_one_micro_batch(
    groups: list[Group], keep_fraction: float, sequences: int
) -> None:
    batch, cut = selected(groups, preset("authors-code", keep_fraction, sequences))
    for part in cut:
        entropies_BL, mask_BL, ours_BL = as_rectangles(batch.take(part))
        flat_N = entropies_BL[mask_BL > 0]
        if not len(flat_N):
            assert not ours_BL.any()
            continue
        k = max(1, int(len(flat_N) * keep_fraction + 0.9999))
        # which of equal entropies it takes is arbitrary there: compare the values
        expected = Counter(torch.topk(flat_N, k).values.tolist())
        assert Counter(entropies_BL[ours_BL].tolist()) == expected


@pytest.mark.parametrize("keep_fraction", [0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.8, 1.0])
def test_authors_code_rounds_k_as_we_do(keep_fraction: float) -> None:
    # their + 0.9999 stands for a ceiling: true for fractions of up to two decimals
    exact = Fraction(str(keep_fraction))
    for n in range(1, 5000):
        assert max(1, int(n * keep_fraction + 0.9999)) == math.ceil(exact * n)


# ---- the paper ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["paper", "paper-v1"])
@settings(deadline=None)
@given(groups=cases(), keep_fraction=FRACTIONS)
def test_paper_keeps_every_token_at_or_above_the_kth_entropy_of_the_mini_batch(
    name: str, groups: list[Group], keep_fraction: float
) -> None:
    # dynamic sampling leaves the paper no group whose answers are all right or all wrong
    mixed = [g for g in groups if g.rollouts_G[0].score.reward != g.rollouts_G[1].score.reward]
    batch, _ = selected(mixed, preset(name, keep_fraction))
    entropies_BL, mask_BL, ours_BL = as_rectangles(batch)
    flat_N = np.sort(entropies_BL[mask_BL > 0].numpy())[::-1]
    k = -(-Fraction(str(keep_fraction)) * len(flat_N) // 1)
    edge = float(flat_N[int(k) - 1])
    assert torch.equal((entropies_BL >= edge) & (mask_BL > 0), ours_BL)
    assert int(ours_BL.sum()) >= k


@settings(deadline=None)
@given(groups=cases(), keep_fraction=FRACTIONS)
def test_forkpoint_and_paper_differ_only_in_ties_at_the_edge(
    groups: list[Group], keep_fraction: float
) -> None:
    ours, _ = selected(groups, preset("forkpoint", keep_fraction))
    paper, _ = selected(groups, preset("paper", keep_fraction))
    assert ours.weights_T is not None
    assert paper.weights_T is not None
    assert ours.rollout_entropies_T is not None
    k = math.ceil(Fraction(str(keep_fraction)) * int(ours.pool_T.sum()))
    assert int(ours.weights_T.sum()) == k
    assert (paper.weights_T >= ours.weights_T).all()
    edge = ours.rollout_entropies_T[ours.weights_T > 0].min()
    extra_T = paper.weights_T > ours.weights_T
    assert (ours.rollout_entropies_T[extra_T] == edge).all()


# ---- LightRFT -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(groups=cases(), keep_fraction=FRACTIONS)
def test_lightrft_keeps_the_top_k_of_each_sequence(
    groups: list[Group], keep_fraction: float
) -> None:
    batch, _ = selected(groups, preset("lightrft", keep_fraction))
    for row_L, mask_L, ours_L in zip(*as_rectangles(batch), strict=True):
        flat_N = row_L[mask_L > 0]
        k = min(len(flat_N), max(1, int(len(flat_N) * keep_fraction)))
        expected = Counter(torch.topk(flat_N, k).values.tolist())
        assert Counter(row_L[ours_L].tolist()) == expected


# ---- denominators -------------------------------------------------------------------------------

# Three completions, every advantage different from 0, ten tokens; two micro-batches: {0, 1}, {2}.
HAND = ([0.9, 0.8, 0.7], [0.6, 0.6], [0.4, 0.3, 0.2, 0.1, 0.05])
COEFFICIENTS: dict[str, list[float]] = {
    # k = ceil(0.4 * 10) = 4, the first of the two 0.6; 1 / 4 each
    "forkpoint": [1 / 4, 1 / 4, 1 / 4, 1 / 4, 0, 0, 0, 0, 0, 0],
    # the 4th value is 0.6 and two tokens reach it: 5 selected, 1 / 5 each
    "paper": [1 / 5, 1 / 5, 1 / 5, 1 / 5, 1 / 5, 0, 0, 0, 0, 0],
    # the same tokens over all 10
    "paper-v1": [1 / 10, 1 / 10, 1 / 10, 1 / 10, 1 / 10, 0, 0, 0, 0, 0],
    # k = ceil(0.4 * 5) = 2 in each part; mean over 2 tokens, times the part's share of the three
    # sequences: 1/2 * 2/3 = 1/3 and 1/2 * 1/3 = 1/6
    "authors-code": [1 / 3, 1 / 3, 0, 0, 0, 1 / 6, 1 / 6, 0, 0, 0],
    # the 0.6 quantile of 5 values has rank 0.6 * 4 = 2.4: 0.7 + 0.4 * 0.1 = 0.74 in the first
    # part, 0.2 + 0.4 * 0.1 = 0.24 in the second; over all 10
    "trl": [1 / 10, 1 / 10, 0, 0, 0, 1 / 10, 1 / 10, 0, 0, 0],
    # the same tokens; the mean of a sequence, then of the three: 3 * 3 and 3 * 5
    "ms-swift": [1 / 9, 1 / 9, 0, 0, 0, 1 / 15, 1 / 15, 0, 0, 0],
    # k = max(1, floor(1.2)), max(1, floor(0.8)), floor(2.0) = 1, 1, 2 of each sequence; the mean
    # of a sequence, then of the three: 1/3, 1/3, 1/2 * 1/3
    "lightrft": [1 / 3, 0, 0, 1 / 3, 0, 1 / 6, 1 / 6, 0, 0, 0],
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_coefficients_by_hand(name: str) -> None:
    group = make_group(0, [1.0, 0.0, 0.0], [3, 2, 5], entropies=HAND)
    batch, cut = selected([group], preset(name, 0.4))
    assert cut == [[0, 1], [2]]
    assert batch.coefficients_T is not None
    assert batch.coefficients_T.tolist() == pytest.approx(COEFFICIENTS[name])
    assert batch.penalty_coefficients_T is None


@pytest.mark.parametrize("name", COEFFICIENTS)
@settings(deadline=None, max_examples=50)
@given(groups=cases(), keep_fraction=FRACTIONS)
def test_coefficients_sum_to_one_or_to_the_kept_share(
    name: str, groups: list[Group], keep_fraction: float
) -> None:
    batch, cut = selected(groups, preset(name, keep_fraction))
    assert batch.coefficients_T is not None
    assert batch.weights_T is not None
    total, expected = batch.coefficients_T.sum().item(), 1.0
    if name in ("paper-v1", "trl"):
        expected = (batch.weights_T.sum() / batch.mask_T.sum()).item()
    if name == "ms-swift":
        shares = [
            batch.weights_T[batch.sequence_T == b].mean().item() for b in range(batch.num_sequences)
        ]
        expected = sum(shares) / batch.num_sequences
    if name == "lightrft":  # a sequence without a token left is a loss of 0
        expected = len(batch.sequence_T[batch.mask_T].unique()) / batch.num_sequences
    if name == "authors-code":  # a micro-batch without a token left is a loss of 0
        alive = [part for part in cut if batch.take(part).mask_T.any()]
        expected = sum(len(part) for part in alive) / batch.num_sequences
    assert total == pytest.approx(expected, rel=1e-5)


def losses(batch: TokenBatch) -> tuple[Tensor, float]:
    """Made-up per-token losses, and what our coefficients make of them."""
    assert batch.coefficients_T is not None
    losses_T = torch.linspace(-1, 2, batch.num_tokens).cos()
    return losses_T, (batch.coefficients_T * losses_T).sum().item()


@settings(deadline=None)
@given(groups=cases(), keep_fraction=FRACTIONS, sequences=st.integers(1, 5))
def test_authors_loss_accumulates_means_of_micro_batches_by_their_sequences(
    groups: list[Group], keep_fraction: float, sequences: int
) -> None:
    batch, cut = selected(groups, preset("authors-code", keep_fraction, sequences))
    losses_T, ours = losses(batch)
    total = 0.0
    for part in cut:
        kept_N = losses_T[batch.rows_of(part)][batch.take(part).weights_T > 0]
        mean = kept_N.mean().item() if len(kept_N) else 0.0
        total += mean * len(part) / batch.num_sequences
    assert ours == pytest.approx(total, rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(groups=cases(), keep_fraction=FRACTIONS)
def test_lightrft_loss_is_a_mean_of_means(groups: list[Group], keep_fraction: float) -> None:
    batch, _ = selected(groups, preset("lightrft", keep_fraction))
    losses_T, ours = losses(batch)
    kept = [
        losses_T[(batch.sequence_T == b) & (batch.weights_T > 0)] for b in range(len(groups) * 2)
    ]
    means = [row_N.mean().item() for row_N in kept if len(row_N)]
    assert ours == pytest.approx(sum(means) / batch.num_sequences, rel=1e-5, abs=1e-6)


@settings(deadline=None)
@given(groups=cases(masked=False), keep_fraction=FRACTIONS)
def test_v1_is_v2_times_the_kept_share(groups: list[Group], keep_fraction: float) -> None:
    v2, _ = selected(groups, preset("paper", keep_fraction))
    v1, _ = selected(groups, preset("paper-v1", keep_fraction))
    assert v1.coefficients_T is not None
    assert v2.coefficients_T is not None
    assert v2.weights_T is not None
    share = v2.weights_T.sum() / v2.num_tokens
    assert torch.allclose(v1.coefficients_T, v2.coefficients_T * share, rtol=1e-6)


def test_dual_clip_belongs_to_the_authors_code_alone() -> None:
    clips = {name: preset(name, 0.2).loss.dual_clip for name in COEFFICIENTS}
    assert clips.pop("authors-code") == 10.0
    assert set(clips.values()) == {None}


@pytest.mark.parametrize(
    ("name", "entropy"),
    [
        ("forkpoint", "auto"),
        ("paper", "current"),
        ("paper-v1", "current"),
        ("authors-code", "current"),
        ("trl", "current"),
        ("ms-swift", "current"),
        ("lightrft", "old"),
    ],
)
def test_whose_entropies_are_read(name: str, entropy: str) -> None:
    assert preset(name, 0.2).selection.entropy == entropy
