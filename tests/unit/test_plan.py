"""The plan's formulas by hand, and what it counts against what is really kept."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plan import case_of, in_a_process
from forkpoint.cli.main import app
from forkpoint.config import RunConfig, parse_config
from forkpoint.config.stages import LoraConfig, ModelConfig
from forkpoint.errors import ConfigError, ModelError
from forkpoint.plan.gpus import gpu_of
from forkpoint.plan.memory import head_share, memory, pass_tokens
from forkpoint.plan.sizes import SHAPES, Sizes, sizes_of
from forkpoint.plan.step import Assumed, StepTokens, step_tokens
from forkpoint.plan.traffic import traffic
from forkpoint.plan.work import operations
from forkpoint.policy import load_model
from forkpoint.policy.flops import body_shape
from forkpoint.policy.lora import add_adapters
from tests.conftest import tiny_model
from tests.equivalence.families import build

SIZES = Sizes(
    parameters=1000,
    trained=1000,
    largest_layer=300,
    outside=400,
    layers=2,
    width=10,
    vocabulary=20,
    key_width=16,
    matrices=500,
    attention=40,
    tied=False,
    kept_bytes=7777,
    kept_by_a_layer=3333,
)


def config_of(**settings: Any) -> RunConfig:
    raw: dict[str, Any] = {
        "rollout": {"prompts_per_step": 2, "group_size": 4, "max_new_tokens": 90},
        "training": {"mini_batches": 2, "micro_batch_tokens": 64},
    }
    for name, value in settings.items():
        section, key = name.split("__")
        raw.setdefault(section, {})[key] = value
    return parse_config(raw)


STEP = StepTokens(sequences=8, prompt=10, length=30, sampled=480, longest=100)


def test_the_tokens_of_a_step() -> None:
    """2 x 4 sequences; with half of the groups flat twice as many are sampled."""
    step = step_tokens(config_of(), Assumed(prompt=10, length=30))
    assert step == STEP
    assert step.completion_tokens == 240
    assert step.tokens == 320
    assert step_tokens(config_of(), Assumed()).length == 30  # a third of 90
    alone = config_of(rollout__dynamic_sampling=False)
    assert step_tokens(alone, Assumed(length=30)).sampled == 240
    # one round: all 2 prompts are sampled, a half of their groups is left; two: 3 and 1.5
    rounds = step_tokens(config_of(rollout__max_rounds=1), Assumed(length=30))
    assert (rounds.sampled, rounds.sequences) == (240, 4)
    many = config_of(rollout__max_rounds=2, rollout__prompts_per_step=8)
    rounds = step_tokens(many, Assumed(length=30))
    assert (rounds.sampled, rounds.sequences) == (12 * 4 * 30, 6 * 4)
    with pytest.raises(ConfigError, match="completions of 91 tokens, but"):
        step_tokens(config_of(), Assumed(length=91))


def test_memory_of_one_process_in_float32() -> None:
    config = config_of()
    assert pass_tokens(config, STEP) == 100  # a sequence may be longer than a micro-batch
    found = memory(config, SIZES, STEP, 1, device="cpu")
    assert found.training == {
        "weights": 4000,
        "gradients": 4000,
        "moments": 8000,
        "activations": 7777,
        "head": 4 * 20 * 10 + 12 * 20 * 20 + 4 * 200,  # 20 rows, all their logits, the gradient
        "step": 46 * 240,
    }
    assert found.sampling == {
        "weights": 4000,
        "moments": 8000,
        "keys and values": 4 * 16 * 8 * 100,
    }
    assert found.peak == 63_200


def test_memory_of_four_processes_in_bfloat16() -> None:
    config = config_of(model__compute_dtype="bfloat16", model__gradient_checkpointing=True)
    found = memory(config, SIZES, STEP, 4)
    assert found.training["weights"] == found.training["gradients"] == 1000
    assert found.training["moments"] == 2000
    assert found.training["copies"] == 2 * (400 + 600)
    assert found.training["in flight"] == 6 * 400
    assert found.training["activations"] == 2 * 100 * 10 * 2 + 3333
    assert found.sampling["copies"] == 2000
    assert found.sampling["keys and values"] == 2 * 16 * 4 * 100  # one prompt
    bounded = config_of(model__compute_dtype="bfloat16", rollout__cache_gb=1e-6)
    assert memory(bounded, SIZES, STEP, 4).sampling["keys and values"] == 1000
    served = config_of(rollout__engine="vllm")
    assert "keys and values" not in memory(served, SIZES, STEP, 4).sampling


def test_what_a_penalty_and_adapters_add() -> None:
    penalty = config_of(loss__kl_coefficient=0.01)
    found = memory(penalty, SIZES, STEP, 4)
    assert found.training["reference"] == found.sampling["reference"] == 4000  # on each
    assert operations(penalty, SIZES, STEP).old == 4200 * 320 + 400 * 240
    lora = config_of(model__lora={"rank": 2})
    found = memory(lora, replace(SIZES, trained=100), STEP, 4)
    assert found.training["weights"] == (4000 + 400) / 4


def test_kept_keys_are_there_while_sampling_and_training() -> None:
    local = config_of(training__gradient="local", training__first_hop=False)
    found = memory(local, SIZES, STEP, 1)
    assert found.training["kept keys"] == found.sampling["kept keys"] == 4 * 16 * STEP.tokens
    bounded = config_of(
        training__gradient="local", training__first_hop=False, training__keys_gb=1e-6
    )
    assert memory(bounded, SIZES, STEP, 1).training["kept keys"] == 1000
    for settings, processes in ((local, 4), (config_of(training__gradient="local"), 1)):
        assert "kept keys" not in memory(settings, SIZES, STEP, processes).training


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 0.2),
        ({"selection__rule": "all"}, 1.0),
        ({"selection__rule": "bottom", "selection__keep_fraction": 0.8}, 0.8),
        ({"loss__surrogate": "gspo"}, 1.0),
        ({"loss__kl_coefficient": 0.1}, 0.2),
        ({"loss__kl_coefficient": 0.1, "loss__penalties_on": "all"}, 1.0),
        ({"loss__penalties_on": "all"}, 0.2),
    ],
)
def test_the_share_of_head_rows(settings: dict[str, Any], share: float) -> None:
    config = config_of(**settings)
    assert head_share(config) == share
    found = operations(config, SIZES, STEP)
    assert found.sparse == pytest.approx(3 * 4200 * 320 + 4 * 400 * share * 240)


def test_operations() -> None:
    """A token costs 2 x 500 + 4 x 20 x 40 = 4,200 in the layers, 400 in the head."""
    found = operations(config_of(), SIZES, STEP)
    assert found.sampling == pytest.approx(4200 * (480 + 4 * 10) + 400 * 480)
    assert found.old == 0
    assert found.dense == pytest.approx(3 * 4200 * 320 + 3 * 400 * 240)
    assert found.sparse == pytest.approx(3 * 4200 * 320 + 4 * 400 * 0.2 * 240)
    # 0.35 of 320 positions are live, each of 64 selected ones looks at 20, the rest hops
    hop = 2 * 10 * (3 * 16 + 40) * 0.65 * 320
    live = 4200 * (1 + 3 * 0.35) * 320
    assert found.local == pytest.approx(live + 2 * 20 * 40 * 64 + hop + 4 * 400 * 48)
    forks = config_of(training__gradient="local", training__live="forks", training__first_hop=False)
    found = operations(forks, SIZES, STEP)
    assert found.local == pytest.approx(4200 * (1 + 3 * 0.2) * 320 + 4 * 400 * 48)
    again = config_of(model__gradient_checkpointing=True, selection__entropy="old")
    found = operations(again, SIZES, STEP)
    assert found.old == pytest.approx(4200 * 320 + 400 * 240)
    paper = config_of(selection__preset="paper", rollout__engine="vllm", loss__kl_coefficient=0.1)
    assert operations(paper, SIZES, STEP).old == pytest.approx(3 * found.old)
    assert found.dense == pytest.approx(4 * 4200 * 320 + 3 * 400 * 240)
    packed = operations(config_of(training__micro_batch_tokens=130), SIZES, STEP)
    assert packed.sparse == pytest.approx(3 * 4200 * 260 + 4 * 400 * 0.2 * 240)


def test_bytes_sent() -> None:
    """Of 2 processes, half of all: (2 x 3 + 1) gathers of 4,000 bytes and one for sampling."""
    found = traffic(config_of(), SIZES, STEP, 2, passes=(3, 1))  # reads a few tokens, for a check
    assert found.weights == 8 * 4000 / 2
    assert found.gradients == 3 * 4000 / 2
    assert found.records == 16 * 480 / 2
    assert found.numbers == found.engine == found.written == 0
    assert found.between == 16_000 + 6000 + 3840
    old = config_of(selection__entropy="old")
    assert traffic(old, SIZES, STEP, 2, passes=(3, 3)).numbers == 24 * 240 / 2
    # 320 tokens, 100 in a pass, 2 processes: 2 passes for old numbers, and one in each update
    assert traffic(old, SIZES, STEP, 2).weights == (2 * 2 + 2 + 1) * 4000 / 2
    current = config_of(
        selection__entropy="current", selection__scope="minibatch", training__mini_batches=4
    )
    assert traffic(current, SIZES, STEP, 2).weights == (2 * 4 + 4 + 1) * 4000 / 2
    assert traffic(current, SIZES, STEP, 2).numbers == 24 * 240 / 2
    assert traffic(config_of(), SIZES, STEP, 2, passes=(3, 1), backend="gloo").gradients == 12_000
    assert traffic(config_of(), SIZES, STEP, 1).between == 0
    served = config_of(rollout__engine="vllm", model__compute_dtype="bfloat16")
    found = traffic(served, SIZES, STEP, 2, passes=(3, 2))
    assert (found.weights, found.engine, found.written) == (8 * 2000 / 2, 2000, 2000)
    tied = traffic(served, replace(SIZES, tied=True), STEP, 2, passes=(3, 2))
    assert tied.written == 2000 + 2 * 200  # the head is written out


def test_sizes_are_those_of_the_model_itself(tmp_path: Path) -> None:
    tiny_model(tied=True).save_pretrained(tmp_path)
    model = tiny_model(tied=True)
    found = sizes_of(ModelConfig(path=str(tmp_path)), 32)
    assert found.parameters == found.trained == sum(p.numel() for p in model.parameters())
    assert found.tied
    assert (found.layers, found.width, found.vocabulary) == (2, 32, 61)
    assert found.key_width == 2 * 2 * 2 * 8  # keys and values, layers, heads, depth
    assert (found.matrices, found.attention) == body_shape(model.model)
    lora = LoraConfig(rank=3)
    adapted = tiny_model(tied=True)
    add_adapters(adapted, lora, None)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert sizes_of(ModelConfig(path=str(tmp_path), lora=lora), 32).trained == trained


@pytest.mark.parametrize("tokens", [16, 40])
def test_kept_bytes_are_what_autograd_really_keeps(tmp_path: Path, tokens: int) -> None:
    tiny_model().save_pretrained(tmp_path)
    model = tiny_model()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            storages.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=torch.arange(tokens)[None], use_cache=False)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    found = sizes_of(ModelConfig(path=str(tmp_path)), tokens)
    assert found.kept_bytes == pytest.approx(kept, rel=0.01)
    assert 0.4 < found.kept_by_a_layer / found.kept_bytes < 0.5


def test_the_shipped_shapes_have_the_parameters_their_names_say() -> None:
    billions = {"0.6B": 0.596, "8B": 8.19, "14B": 14.77, "32B": 32.76}
    for path in SHAPES.glob("*.json"):
        found = sizes_of(ModelConfig(path=str(path)), 8).parameters / 1e9
        (said,) = [n for name, n in billions.items() if f"-{name}" in path.name]
        assert found == pytest.approx(said, rel=0.002), path.name


def test_what_cannot_be_planned_is_one_line() -> None:
    with pytest.raises(ModelError, match="its config cannot be read"):
        sizes_of(ModelConfig(path="nobody/nothing"), 8)
    with pytest.raises(ConfigError, match="known are h100"):
        gpu_of("abacus")
    for wrong in (["--gpus", "0"], ["--length", "0"], ["--flat", "1"], ["--prompt", "0"]):
        with pytest.raises(ConfigError):
            app(["plan", "lab_demo", *wrong], result_action="return_value")


def test_the_command_names_the_parts(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the shipped policy, whose plan is made without loading it."""
    assert load_model(ModelConfig(device="cpu")).model is not None
    app(["plan", "lab_demo", "--gpus", "2", "--json"], result_action="return_value")
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert set(found["operations"]) == {"sampling", "old", "dense", "sparse", "local"}
    app(["plan", "lab_demo"], result_action="return_value")
    said = capsys.readouterr().out
    assert "memory a GPU, training" in said
    assert "of 80 GB: fits" in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep", "deep, checkpointed", "one long row"])
def test_the_peak_is_within_15_percent(name: str) -> None:
    assert in_a_process(name, "sparse")["ratio"] == pytest.approx(1, abs=0.15)


def test_the_cases_of_the_benchmark_are_what_they_say(tmp_path: Path) -> None:
    config, step = case_of("one long row", "sparse", tmp_path)
    assert pass_tokens(config, step) == 12_288


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys", "ignore:fan_in")
@pytest.mark.parametrize(
    "family", ["qwen2_moe", "mixtral", "gpt2", "qwen3", "mamba", "deepseek_v3"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_families_are_planned_as_they_are(family: str, dtype: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path)
    sizes = ModelConfig.model_validate({"path": str(tmp_path), "compute_dtype": dtype})
    found = sizes_of(sizes, 32)
    model = build(family)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    cache = model(torch.arange(2, 42)[None], use_cache=True).get("past_key_values")
    grows = [] if cache is None else [t for t in _tensors_of(cache) if 40 in t.shape]
    assert found.key_width == sum(t.numel() for t in grows) // 40
    if family != "mamba":
        adapted = build(family)
        add_adapters(adapted, LoraConfig(rank=3), None)
        lora = sizes.model_copy(update={"lora": LoraConfig(rank=3)})
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert sizes_of(lora, 32).trained == trained


def _tensors_of(cache: Any) -> list[torch.Tensor]:
    held = [value for layer in cache.layers for value in vars(layer).values()]
    return [value for value in held if torch.is_tensor(value)]


@pytest.mark.parametrize("kind", ["vit", "t5"])
def test_what_is_no_language_model_is_one_line(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match="cannot be planned") as caught:
        sizes_of(ModelConfig(path=str(tmp_path)), 32)
    assert "\n" not in str(caught.value)
