"""Adapters: they begin as the model, have its gradient, and merge into it."""

import json
import sys
from pathlib import Path

import pytest
import torch

from forkpoint.config import parse_config
from forkpoint.config.stages import LoraConfig, ModelConfig
from forkpoint.errors import ConfigError, ModelError
from forkpoint.losses import batch_loss
from forkpoint.losses.batch_loss import needed_rows
from forkpoint.policy import PolicyModule, load_model
from forkpoint.policy.export import export_model
from forkpoint.policy.lora import add_adapters
from forkpoint.training.loop import train
from tests.conftest import make_batch, tiny_model
from tests.equivalence.test_gradients import prepared

CONFIG = parse_config({"selection": {"keep_fraction": 0.3}})


def backward(model: torch.nn.Module, gradient: str) -> None:
    batch = prepared(make_batch(), CONFIG)
    policy = PolicyModule(model, gradient=gradient, temperature=1.0)
    wanted = needed_rows(batch, CONFIG.loss)
    batch_loss(batch, policy(batch, wanted), CONFIG.loss).loss.backward()


@pytest.mark.parametrize("gradient", ["dense", "sparse"])
def test_the_gradient_of_adapters_is_the_full_one_projected(gradient: str) -> None:
    """Of y = (W + s B A) x: dL/dA = s B^T G and dL/dB = s G A^T, with G = dL/dW at W + s B A."""
    adapted = tiny_model()
    add_adapters(adapted, LoraConfig(rank=2, alpha=6.0), None)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide A's gradient
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    pairs = {
        name.removesuffix(".lora_A.default.weight"): (
            parameter,
            adapted.get_parameter(name.replace("lora_A", "lora_B")),
        )
        for name, parameter in adapted.named_parameters()
        if "lora_A" in name
    }
    assert len(pairs) >= 14  # every linear layer of two decoder layers
    whole = tiny_model()
    for name, (a, b) in pairs.items():
        whole.get_parameter(f"{name}.weight").data += 3.0 * b.data @ a.data
    backward(adapted, gradient)
    backward(whole, gradient)
    for name, (a, b) in pairs.items():
        full = whole.get_parameter(f"{name}.weight").grad
        assert full is not None
        assert a.grad is not None
        assert b.grad is not None
        for found, expected in (
            (a.grad, 3.0 * b.data.T @ full),
            (b.grad, 3.0 * full @ a.data.T),
        ):
            assert (found - expected).norm() < 1e-4 * expected.norm()
    assert all(p.grad is None for n, p in adapted.named_parameters() if "lora_" not in n)


def test_the_policy_starts_as_the_model() -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    adapted = tiny_model()
    add_adapters(adapted, LoraConfig(), None)
    assert torch.equal(adapted(ids).logits, tiny_model()(ids).logits)
    again = tiny_model()
    add_adapters(again, LoraConfig(), None)
    for (name, one), (_, other) in zip(
        adapted.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name  # the same seed, the same adapters


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps on adapters of the laboratory's policy."""
    root = tmp_path_factory.mktemp("lora") / "run"
    config = parse_config(
        {
            "model": {"lora": {"rank": 4}},
            "training": {"steps": 2, "threads": 1},
            "rollout": {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 60},
            "optim": {"lr": 1e-2, "warmup_steps": 0},
            "checkpoint": {"every": 1},
            "scoring": {"workers": 1},
        }
    )
    train(config, root)
    return root


def test_a_checkpoint_holds_adapters_and_is_a_model(run: Path) -> None:
    folder = run / "checkpoints" / "step_00002"
    names = {path.name for path in folder.iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    loaded = load_model(ModelConfig(path=str(folder))).model
    assert not any(p.requires_grad for p in loaded.parameters())
    base = load_model(ModelConfig()).model
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    assert not torch.equal(loaded(ids).logits, base(ids).logits)  # it has learnt something


def test_a_merged_model_gives_the_same_numbers_without_adapters(run: Path, tmp_path: Path) -> None:
    folder = run / "checkpoints" / "step_00002"
    export_model(str(folder), tmp_path / "merged")
    merged = load_model(ModelConfig(path=str(tmp_path / "merged"))).model
    adapted = load_model(ModelConfig(path=str(folder))).model
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_what_cannot_be_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"model\.lora: Target modules .*nope"):
        add_adapters(tiny_model(), LoraConfig(targets=("nope",)), None)
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": None}))
    (moved / "adapter_model.safetensors").touch()
    with pytest.raises(ModelError, match="names no base model"):
        load_model(ModelConfig(path=str(moved)))
    (moved / "adapter_model.safetensors").rename(moved / "adapter_model.bin")
    with pytest.raises(ModelError, match="only safetensors are read"):
        load_model(ModelConfig(path=str(moved)))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'forkpoint\[lora\]'"):
        load_model(ModelConfig(lora=LoraConfig()), trained=True)
