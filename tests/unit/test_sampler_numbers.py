"""That the sampler's numbers are the policy's own is looked at, not assumed."""

import pytest
import torch

from forkpoint.batching import build_batch
from forkpoint.config import parse_config
from forkpoint.policy import PolicyModule
from forkpoint.training.annotate import annotate
from forkpoint.training.meter import Meter
from tests.conftest import make_batch, make_group, tiny_model

CONFIG = parse_config({})
BFLOAT16 = parse_config({"model": {"compute_dtype": "bfloat16"}})


@pytest.mark.parametrize(
    "stream", ["rollout_logprobs_T", "rollout_entropies_T", "rollout_energies_T"]
)
@pytest.mark.parametrize(("off", "trusted"), [(0.0, True), (5e-4, True), (2e-3, False)])
def test_numbers_that_are_off_are_not_used(stream: str, off: float, trusted: bool) -> None:
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    batch = make_batch()
    exact = policy.annotate(batch, max_tokens=1000)
    batch = batch.with_streams(
        rollout_logprobs_T=exact.logprobs_R,
        rollout_entropies_T=exact.entropies_R,
        rollout_energies_T=exact.energies_R,
    )
    wrong = getattr(batch, stream).clone()
    looked_at = 12 % batch.num_sequences
    wrong[batch.rows_of([looked_at])[0]] += off
    batch = batch.with_streams(**{stream: wrong})
    elsewhere = Meter()
    annotate(policy, batch, CONFIG, elsewhere, step=11, same_weights=True)
    assert elsewhere.means()["mismatch/probe_max_nats"] < 1e-5
    meter = Meter()
    noted = annotate(policy, batch, CONFIG, meter, step=12, same_weights=True)
    in_nats = 0.0 if stream == "rollout_energies_T" else off
    assert meter.means()["mismatch/probe_max_nats"] == pytest.approx(in_nats, abs=1e-5)
    assert (noted.old_entropies_T is None) == trusted
    assert noted.old_logprobs_T is not None
    expected = noted.rollout_logprobs_T if trusted else exact.logprobs_R
    torch.testing.assert_close(noted.old_logprobs_T, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("first", "others", "trusted"),
    # means of 80: (0.9 + 79 * 0.03) / 80 = 0.041, 1.1 / 80 = 0.014, (0.9 + 79 * 0.04) / 80 = 0.051
    [(0.9, 0.03, True), (1.1, 0.0, False), (0.9, 0.04, False)],
)
def test_bfloat16_numbers_may_differ_by_rounding(
    first: float, others: float, trusted: bool
) -> None:
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    batch = build_batch([make_group(0, [1.0, 0.0], [80, 5])], advantage="grpo")
    exact = policy.annotate(batch, max_tokens=1000)
    off_T = torch.full_like(exact.logprobs_R, others)
    off_T[0] = first
    batch = batch.with_streams(
        rollout_logprobs_T=exact.logprobs_R + off_T, rollout_entropies_T=exact.entropies_R
    )
    noted = annotate(policy, batch, BFLOAT16, Meter(), step=0, same_weights=True)
    assert (noted.old_entropies_T is None) == trusted


def test_an_engine_with_other_weights_is_not_even_looked_at() -> None:
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    policy.row_tokens = 512
    meter = Meter(policy)
    noted = annotate(policy, make_batch(), CONFIG, meter, step=1, same_weights=False)
    assert "mismatch/probe_max_nats" not in meter.means()
    assert noted.old_entropies_T is not None
    # prompts of 3 + 5 + 7 tokens once each, 56 tokens of 9 completions without their last ones
    assert meter.means()["work/nograd_tokens"] == 15 + 56 - 9
