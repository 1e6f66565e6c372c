"""The weights that servers get: the model's own numbers, merged, with a head of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from forkpoint.config.stages import LoraConfig
from forkpoint.errors import ModelError
from forkpoint.policy.lora import add_adapters
from forkpoint.policy.served import served_weights, write_served
from tests.conftest import NumberTokenizer, tiny_model
from tests.equivalence.families import build


class Tokenizer(NumberTokenizer):
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(2, 40)[None] % 61).logits


def served(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    write_served(folder, model, served_weights(model, dtype), Tokenizer())
    found = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert not found.config.tie_word_embeddings
    return found


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gemma2", "gpt2", "mixtral", "phi3", "qwen2_moe", "olmo2"]
)
def test_every_family_is_read_back_with_the_same_logits(family: str, tmp_path: Path) -> None:
    model = build(family)
    torch.testing.assert_close(logits(served(model, tmp_path)), logits(model), rtol=1e-5, atol=1e-5)


def test_a_tied_head_is_written_out(tmp_path: Path) -> None:
    model = tiny_model(tied=True)
    torch.testing.assert_close(logits(served(model, tmp_path)), logits(model))
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(file.keys())


def test_in_sixteen_bits(tmp_path: Path) -> None:
    found = served(tiny_model(), tmp_path, torch.bfloat16)
    assert found.dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # peft sets it right, and says so
@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "qwen2_moe", "mixtral"])
def test_adapters_are_merged(family: str, tmp_path: Path) -> None:
    """W + (alpha / r) B A; GPT-2 keeps W transposed, experts lie in one parameter."""
    model = build(family)
    add_adapters(model, LoraConfig(rank=2, alpha=6.0), None)
    generator = torch.Generator().manual_seed(1)
    before = logits(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    assert not torch.allclose(logits(model), before)
    torch.testing.assert_close(logits(served(model, tmp_path)), logits(model), rtol=1e-4, atol=1e-4)


def test_who_does_not_want_them_gets_none() -> None:
    assert served_weights(tiny_model(), torch.float32, keep=False) == {}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # so it is
def test_a_tied_head_that_was_adapted_is_no_longer_tied(tmp_path: Path) -> None:
    model = tiny_model(tied=True)
    add_adapters(model, LoraConfig(rank=2, targets=("lm_head",)), None)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.1
    write_served(tmp_path, model, served_weights(model, torch.float32), Tokenizer(), untie=False)
    found = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-4)


def test_an_embedding_cannot_be_adapted() -> None:
    with pytest.raises(ModelError, match="an embedding cannot be adapted"):
        add_adapters(tiny_model(), LoraConfig(targets=("embed_tokens",)), None)
