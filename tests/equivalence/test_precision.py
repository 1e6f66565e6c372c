"""bfloat16 passes over float32 parameters: nothing that is summed up or kept is rounded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.utils import _recursive_to

from forkpoint.config import parse_config
from forkpoint.config.stages import ModelConfig, OptimConfig
from forkpoint.errors import ModelError
from forkpoint.losses import batch_loss
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule, precision
from forkpoint.policy.body import enable_checkpointing
from forkpoint.policy.live import LiveSet
from forkpoint.policy.load import load_model
from forkpoint.policy.precision import compute_in, unsharded, whole
from forkpoint.sampling.rows import Rows, settle_decoding
from forkpoint.training.checkpoint import RunState, save_checkpoint
from forkpoint.training.optimizer import Optimizer
from forkpoint.types import TokenBatch
from tests.conftest import make_batch, tiny_model
from tests.equivalence.test_gradients import prepared

CONFIG = parse_config({"selection": {"keep_fraction": 0.3}})
SMALL_STEP = OptimConfig(lr=1e-6)
"""The learning rate of the paper and of most recipes."""


def bfloat16_policy(model: Any = None, gradient: str = "sparse", **settings: Any) -> PolicyModule:
    policy = PolicyModule(
        model or tiny_model(tied=True), gradient=gradient, temperature=1.0, **settings
    )
    compute_in(policy, torch.bfloat16)
    return policy


def backward(policy: PolicyModule, batch: TokenBatch) -> None:
    needed_T = needed_rows(batch, CONFIG.loss)
    batch_loss(batch, policy(batch, needed_T), CONFIG.loss).loss.backward()


def gradient_of(policy: PolicyModule) -> Tensor:
    gradients = [p.grad for p in policy.model.parameters() if p.grad is not None]
    assert all(g.dtype == torch.float32 for g in gradients)
    return torch.cat([whole(g).flatten() for g in gradients])


def weights_of(policy: PolicyModule) -> dict[str, Tensor]:
    weights = {n: whole(p.detach()).clone() for n, p in policy.model.named_parameters()}
    assert all(w.dtype == torch.float32 for w in weights.values())
    return weights


@pytest.mark.parametrize("gradient", ["dense", "sparse", "local"])
def test_an_update_of_one_millionth_changes_every_weight(gradient: str) -> None:
    policy = bfloat16_policy(gradient=gradient)
    optimizer = Optimizer(policy.model, SMALL_STEP)
    before = weights_of(policy)
    for seed in range(8):
        backward(policy, prepared(make_batch(seed=seed), CONFIG))
        optimizer.step()
    after = weights_of(policy)
    for name, moved in after.items():
        # AdamW moves a weight by about lr an update, back and forth.
        assert (moved != before[name]).float().mean() > 0.9, name
        assert 1e-6 < (moved - before[name]).abs().mean() < 8e-6, name


def test_no_wrapper_moves_or_copies_what_the_policy_is_asked() -> None:
    """On a GPU, FSDP moves every tensor that it finds among the arguments and copies dicts."""
    keeping = LiveSet(first_hop=False)
    policy = PolicyModule(tiny_model(), gradient="local", temperature=1.0, live=keeping)
    seen: list[tuple[Any, ...]] = []
    policy.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    batch = make_batch()
    with torch.no_grad():
        policy(batch, torch.ones_like(batch.pool_T), keep_keys=True)
    assert policy.keys is not None
    assert len(policy.keys) == batch.num_sequences
    (moved,) = _recursive_to(seen[0], torch.device("meta"), False)
    assert all(one is other for one, other in zip(seen[0], moved, strict=True))


def test_whatever_was_run_last_the_parameters_are_the_float32_ones() -> None:
    policy = bfloat16_policy()

    def check() -> None:
        for name, parameter in policy.model.named_parameters():
            assert isinstance(parameter, DTensor), name
            assert parameter.dtype == torch.float32, name

    check()
    optimizer = Optimizer(policy.model, SMALL_STEP)
    batch = prepared(make_batch(), CONFIG)
    policy.annotate(batch, max_tokens=100)
    check()
    with unsharded(policy), torch.no_grad():
        policy.model(input_ids=torch.ones(1, 3, dtype=torch.int64))
    check()
    backward(policy, batch)
    check()
    optimizer.step()
    check()
    assert {t.dtype for t in optimizer.state_tensors().values()} == {torch.float32}


def test_a_16_bit_optimizer_does_not_exist() -> None:
    with pytest.raises(ModelError, match=r"embed_tokens.weight is held in 16 bits"):
        Optimizer(tiny_model(dtype=torch.bfloat16), SMALL_STEP)


def test_the_second_moment_forgets() -> None:
    """beta2 = 0.999 times a bfloat16 number rounds to itself: the moment would never fall."""
    policy = bfloat16_policy()
    optimizer = Optimizer(policy.model, OptimConfig(lr=1e-12, clip_norm=1e9))
    backward(policy, prepared(make_batch(), CONFIG))
    gradients = {n: p.grad.clone() for n, p in policy.model.named_parameters()}
    name = "model.layers.0.mlp.up_proj.weight"
    for count in range(500):
        for n, parameter in policy.model.named_parameters():
            parameter.grad = gradients[n] * (1.0 if count == 0 else 0.01)
        optimizer.step()
    moment = optimizer.state_tensors()[f"exp_avg_sq/{name}"].double()
    square = whole(gradients[name]).double().square()
    decay = 0.999**499
    expected = 0.001 * square * decay + (1 - decay) * 1e-4 * square
    torch.testing.assert_close(moment, expected, rtol=1e-3, atol=1e-30)


def test_a_sum_of_equal_gradients_is_exact() -> None:
    """128 passes over the same sequences: a bfloat16 sum would stand still after a few."""
    policy = bfloat16_policy()
    batch = prepared(make_batch(), CONFIG)
    backward(policy, batch)
    once = gradient_of(policy).double()
    for _ in range(127):
        backward(policy, batch)
    error = (gradient_of(policy).double() - 128 * once).norm() / (128 * once).norm()
    assert error < 1e-6


@pytest.mark.parametrize("gradient", ["dense", "sparse", "local"])
def test_a_cut_adds_no_more_than_the_rounding_of_a_pass(gradient: str) -> None:
    batch = prepared(make_batch(groups=12), CONFIG)
    needed_T = needed_rows(batch, CONFIG.loss)
    found = []
    for most in (None, 1):
        # local's rows choose each their live positions: with all of them it is one gradient
        policy = bfloat16_policy(gradient=gradient, live=LiveSet(kind="all"))
        for part in policy.passes(batch, needed_T, max_tokens=10**6, max_sequences=most):
            backward(policy, batch.take(part))
        found.append(gradient_of(policy))
    assert (found[0] - found[1]).norm() / found[0].norm() < 0.02


def test_a_pass_computes_what_a_bfloat16_model_computes() -> None:
    """To the last bit: only what is kept is finer."""
    batch = prepared(make_batch(), CONFIG)
    wanted_T = torch.ones(batch.num_tokens, dtype=torch.bool)
    plain = load_model(ModelConfig(compute_dtype="bfloat16")).model
    assert plain.dtype == torch.bfloat16
    expected = PolicyModule(plain, gradient="sparse", temperature=1.0)(batch, wanted_T)
    trained = load_model(ModelConfig(compute_dtype="bfloat16"), trained=True).model
    assert trained.dtype == torch.float32
    found = bfloat16_policy(trained)(batch, wanted_T)
    assert torch.equal(found.logprobs_R, expected.logprobs_R)
    assert torch.equal(found.entropies_R, expected.entropies_R)


def test_sampling_sees_every_update(tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(compute_dtype="bfloat16"), trained=True)
    policy = bfloat16_policy(loaded.model)
    optimizer = Optimizer(policy.model, OptimConfig(lr=1e-3))
    ids = torch.arange(3, 9)[None]
    with unsharded(policy), torch.no_grad():
        before = loaded.model(input_ids=ids, use_cache=False).logits
    for step in (1, 2):
        backward(policy, prepared(make_batch(seed=step), CONFIG))
        optimizer.step()
        with unsharded(policy), torch.no_grad():
            sampled = loaded.model(input_ids=ids, use_cache=False).logits
        path = save_checkpoint(
            tmp_path, RunState(step=step), loaded.model, loaded.tokenizer, optimizer, 2
        )
        fresh = load_model(ModelConfig(path=str(path), compute_dtype="bfloat16")).model
        with torch.no_grad():
            expected = fresh(input_ids=ids, use_cache=False).logits
        assert sampled.dtype == torch.bfloat16
        assert torch.equal(sampled, expected)
        assert not torch.equal(sampled, before)
        before = sampled


def test_a_checkpoint_holds_the_float32_weights(tmp_path: Path) -> None:
    loaded = load_model(ModelConfig(compute_dtype="bfloat16"), trained=True)
    policy = bfloat16_policy(loaded.model)
    optimizer = Optimizer(policy.model, SMALL_STEP)
    backward(policy, prepared(make_batch(), CONFIG))
    optimizer.step()
    path = save_checkpoint(tmp_path, RunState(step=1), loaded.model, loaded.tokenizer, optimizer, 2)
    again = load_model(ModelConfig(path=str(path)), trained=True).model
    for (name, mine), (_, theirs) in zip(
        again.named_parameters(), policy.model.named_parameters(), strict=True
    ):
        assert torch.equal(mine, whole(theirs)), name


def test_checkpointed_layers_give_the_same_gradient() -> None:
    batch = prepared(make_batch(), CONFIG)
    plain = bfloat16_policy()
    backward(plain, batch)
    model = tiny_model(tied=True)
    enable_checkpointing(model)
    checkpointed = bfloat16_policy(model)
    backward(checkpointed, batch)
    assert torch.equal(gradient_of(plain), gradient_of(checkpointed))


def test_moments_go_where_the_parameters_are() -> None:
    model = torch.nn.Linear(2, 3)
    optimizer = Optimizer(model, SMALL_STEP)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    elsewhere = torch.nn.Linear(2, 3, device="meta")
    restored = Optimizer(elsewhere, SMALL_STEP)
    restored.load_state_tensors(optimizer.state_tensors().items())
    moments = [t for state in restored._adamw.state.values() for t in state.values()]
    assert len(moments) == len(optimizer.state_tensors())
    assert {t.device.type for t in moments} == {"meta"}


def with_scalar() -> Any:
    model = tiny_model()
    model.base_model.scale = torch.nn.Parameter(torch.tensor(1.0))
    return model


def with_types_that_do_not_mix() -> Any:
    """A buffer stays float32, and what is added to it turns float32 in the middle of a pass."""
    model = tiny_model()
    embed = model.get_input_embeddings()
    embed.register_buffer("shift", torch.zeros(1))
    embed.register_forward_hook(lambda module, args, output: output + module.shift)
    return model


def with_a_weight_that_rounds() -> Any:
    """100.3 is 100.5 in bfloat16, which matters where 100.3 is subtracted."""
    model = tiny_model()
    norm = model.base_model.norm
    norm.weight.data += 100.3
    norm.register_forward_hook(lambda module, args, output: output - 100.3 * args[0])
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (with_scalar, "fully_shard doesn't support scalar parameters"),
        (with_types_that_do_not_mix, "dtype"),
        (with_a_weight_that_rounds, r"its entropies come out [0-9.]+ nats off"),
    ],
)
def test_what_cannot_compute_in_bfloat16_is_refused_by_name(model: Any, reason: str) -> None:
    policy = PolicyModule(model(), gradient="dense", temperature=1.0)
    sentence = rf"^\w+ForCausalLM cannot compute in bfloat16 .*\(.*{reason}.*\); use --set model"
    with pytest.raises(ModelError, match=sentence):
        compute_in(policy, torch.bfloat16)


def test_memory_that_is_full_is_not_the_models_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(precision, "fully_shard", full)
    with pytest.raises(torch.OutOfMemoryError):
        bfloat16_policy()


def test_the_trial_leaves_no_gradient() -> None:
    assert all(parameter.grad is None for parameter in bfloat16_policy().parameters())


def test_float32_is_left_alone() -> None:
    policy = PolicyModule(tiny_model(), gradient="sparse", temperature=1.0)
    compute_in(policy, torch.float32)
    assert not any(isinstance(p, DTensor) for p in policy.parameters())
    with unsharded(policy):
        pass


@pytest.mark.parametrize("trained", [True, False])
def test_sampling_has_the_trainers_logits_and_not_rounded_ones(trained: bool) -> None:
    """bfloat16 logits of up to 32 are off by 0.06: a sampled token's numbers come from float32."""
    loaded = load_model(ModelConfig(compute_dtype="bfloat16"), trained=trained)
    decoding = settle_decoding(loaded.model)
    assert decoding.knows_head
    policy = PolicyModule(loaded.model, gradient="sparse", temperature=1.0)
    if trained:
        compute_in(policy, torch.bfloat16)
    prompt = tuple(range(3, 12))
    with unsharded(policy), torch.no_grad():
        found = Rows(loaded.model, decoding).read([prompt])
        hidden = loaded.model.model(input_ids=torch.tensor([prompt])).last_hidden_state[:, -1]
        weight = loaded.model.lm_head.weight
        assert hidden.dtype == weight.dtype == torch.bfloat16
        exact = hidden.double() @ weight.double().T
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    rounded = exact.bfloat16().double()
    assert (rounded - exact).abs().max() > 100 * (found - exact).abs().max()
