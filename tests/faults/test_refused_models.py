"""Models that cannot be trained or sampled right are refused when they are loaded, in one line."""

import sys
from pathlib import Path
from typing import Any

import pytest

from forkpoint.cli.main import main
from forkpoint.config.stages import ModelConfig
from forkpoint.errors import ModelError
from forkpoint.policy.load import load_model
from tests.equivalence.families import build

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers' own code

RECIPE = str(Path(__file__).parents[2] / "src" / "forkpoint" / "recipes" / "lab_demo.toml")


def saved(family: str, folder: Path, **changes: Any) -> str:
    """A folder with a family's small model and the laboratory's tokenizer."""
    load_model(ModelConfig()).tokenizer.save_pretrained(folder)
    build(family, vocab_size=128, **changes).save_pretrained(folder)
    return str(folder)


def test_a_class_without_sdpa_is_loaded_with_eager_attention_and_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(ModelConfig(path=saved("mamba", tmp_path))).model
    assert model.config._attn_implementation == "eager"
    assert "MambaForCausalLM knows no sdpa attention: eager is used" in caplog.text


def test_gemma_2_keeps_its_cap_when_loaded(tmp_path: Path) -> None:
    path = saved("gemma2", tmp_path)
    assert load_model(ModelConfig(path=path)).model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("family", "settings", "sentence"),
    [
        ("bert", {}, "BertLMHeadModel gives a sequence other numbers beside a longer one"),
        ("ctrl", {"gradient_checkpointing": True}, "CTRLLMHeadModel has no layers that can be run"),
    ],
)
def test_a_model_is_refused_by_name(
    tmp_path: Path, family: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_model(ModelConfig(path=saved(family, tmp_path), **settings))


@pytest.mark.parametrize("command", ["train", "eval", "analyze"])
def test_every_command_refuses_what_it_would_sample_wrong(
    tmp_path: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = saved("rwkv", tmp_path / "rwkv")
    arguments = {
        "train": [RECIPE, "--set", f"model.path={path}", "--run-dir", str(tmp_path / "run")],
        "eval": ["--model", path],
        "analyze": ["--model", path, "--run-dir", str(tmp_path / "run")],
    }
    monkeypatch.setattr(sys, "argv", ["forkpoint", command, *arguments[command]])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "error: RwkvForCausalLM cannot be sampled a token at a time by this engine" in error
    assert "Traceback" not in error


def test_training_refuses_a_model_that_mixes_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "model.path": saved("xglm", tmp_path / "xglm"),
        "model.compute_dtype": "bfloat16",
    }
    chosen = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    arguments = [RECIPE, *chosen, "--run-dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["forkpoint", "train", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "error: XGLMForCausalLM cannot compute in bfloat16 with parameters kept in" in error
    assert "Traceback" not in error
