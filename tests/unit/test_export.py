"""A checkpoint as a model of its own. That of adapters is tried in test_lora."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from forkpoint.cli.export import export
from forkpoint.config.stages import ModelConfig
from forkpoint.errors import ModelError
from forkpoint.lab import BASE_POLICIES
from forkpoint.policy.export import export_model
from forkpoint.policy.load import load_model


def test_a_model_is_written_in_the_type_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(BASE_POLICIES["lab:game"], out=tmp_path / "out", dtype="bfloat16") == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    expected = AutoModelForCausalLM.from_pretrained(BASE_POLICIES["lab:game"], dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert found.config.tie_word_embeddings == expected.config.tie_word_embeddings
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) > 20


def test_a_tied_head_is_written_once(tmp_path: Path) -> None:
    """Also where each name's numbers are converted."""
    export_model(str(BASE_POLICIES["lab:game"]), tmp_path / "out", dtype=torch.float16)
    tied = AutoModelForCausalLM.from_pretrained(
        BASE_POLICIES["lab:game"]
    ).config.tie_word_embeddings
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert ("lm_head.weight" in file.offset_keys()) != tied


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ModelError, match="is there already: name a new folder"):
            export_model("lab:game", out)
    with pytest.raises(ModelError, match="there is no such folder"):
        export_model("./nowhere", tmp_path / "out")


def test_weights_that_are_not_in_the_files_are_not_made_up(tmp_path: Path) -> None:
    export_model("lab:game", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(ModelConfig(path=str(tmp_path / "out")))
