"""What presets fill in, which combinations cannot be, and that nothing is lost on disk."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from forkpoint.config import RunConfig, load_config, parse_config
from forkpoint.config.presets import DENOMINATORS, LOSS_PRESETS, SELECTION_PRESETS
from forkpoint.config.stages import SelectionConfig
from tests.unit.test_config import NEEDED, fault, placed

# ---- round trip ---------------------------------------------------------------------------------

EXAMPLES: list[dict[str, Any]] = [
    {},
    *({"loss": {"preset": name}} for name in LOSS_PRESETS),
    *(
        {"selection": {"preset": name}, "training": {"micro_batch_sequences": 2}}
        for name in SELECTION_PRESETS
    ),
    *(placed(member)[0] for member in NEEDED),
    {"selection": {"rule": "threshold", "threshold_nats": 0.672}, "loss": {"dual_clip": 3}},
]


@pytest.mark.parametrize("raw", EXAMPLES, ids=lambda raw: str(raw)[:50])
def test_what_is_written_is_what_is_read(raw: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(raw)
    text = config.model_dump_json(indent=2)
    assert RunConfig.model_validate(json.loads(text)) == config
    assert RunConfig.model_validate_json(text) == config
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    assert load_config(path) == config
    assert load_config(path).model_dump_json(indent=2) == text


def test_a_configuration_cannot_be_changed() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.name = "other"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError, match="frozen"):
        config.loss.clip_low = 0.5  # pyright: ignore[reportAttributeAccessIssue]


# ---- presets ------------------------------------------------------------------------------------


def test_each_preset_has_a_name_and_each_name_a_preset() -> None:
    for section, table in (("selection", SELECTION_PRESETS), ("loss", LOSS_PRESETS)):
        model: Any = RunConfig.model_fields[section].annotation
        assert set(get_args(model.model_fields["preset"].annotation)) == set(table)
    assert DENOMINATORS.keys() == SELECTION_PRESETS.keys()


PAIRS = [(selection, loss) for selection in DENOMINATORS for loss in DENOMINATORS[selection]]


@pytest.mark.parametrize(("selection", "loss"), PAIRS)
def test_presets_are_resolved(selection: str, loss: str) -> None:
    # the dump names every value
    raw = {
        "selection": {"preset": selection},
        "loss": {"preset": loss},
        "training": {"micro_batch_sequences": 2},
    }
    dump = parse_config(raw).model_dump()
    assert dump["loss"]["denominator"] == DENOMINATORS[selection][loss]
    for preset in (SELECTION_PRESETS[selection], LOSS_PRESETS[loss]):
        for section, settings in preset.items():
            assert {key: dump[section][key] for key in settings} == settings


def test_no_preset_undoes_what_another_says() -> None:
    for selection, loss in PAIRS:
        first, second = SELECTION_PRESETS[selection], LOSS_PRESETS[loss]
        assert not first.get("loss", {}).keys() & second["loss"].keys()


@pytest.mark.parametrize("loss", LOSS_PRESETS)
@pytest.mark.parametrize("selection", SELECTION_PRESETS)
def test_a_pair_of_presets_is_right_or_refused(selection: str, loss: str) -> None:
    raw: dict[str, Any] = {
        "selection": {"preset": selection},
        "loss": {"preset": loss},
        "training": {"micro_batch_sequences": 2},
    }
    if (selection, loss) in PAIRS:
        parse_config(raw)
        return
    message = fault(raw)
    assert f"selection.preset = '{selection}' stands for no published loss.preset" in message
    assert f"use '{next(iter(DENOMINATORS[selection]))}'" in message
    assert "\n" not in message
    raw["loss"]["denominator"] = "constant"  # whoever writes it knows
    assert parse_config(raw).loss.denominator == "constant"


@pytest.mark.parametrize(
    ("selection", "loss", "denominator", "clip_high"),
    [
        ("forkpoint", "dapo", "selected", 0.28),
        ("paper", "dapo", "selected", 0.28),
        ("paper-v1", "dapo", "all", 0.28),
        ("authors-code", "dapo", "microbatch_selected", 0.28),
        ("trl", "dapo", "all_per_update", 0.28),
        # GRPO is the default of these two
        ("ms-swift", "grpo", "sequence", 0.2),
        ("lightrft", "grpo", "sequence_selected", 0.2),
    ],
)
def test_without_a_loss_preset_it_is_the_codes_own_default(
    selection: str, loss: str, denominator: str, clip_high: float
) -> None:
    raw = {"selection": {"preset": selection}, "training": {"micro_batch_sequences": 2}}
    config = parse_config(raw).loss
    assert (config.preset, config.denominator) == (loss, denominator)
    assert config.clip_high == clip_high


def test_the_default_presets_are_the_defaults() -> None:
    assert RunConfig() == parse_config({"selection": {"preset": "forkpoint"}})
    assert RunConfig() == parse_config({"loss": {"preset": "dapo"}})
    assert RunConfig().selection == SelectionConfig()


def test_what_a_recipe_writes_wins_over_its_presets() -> None:
    config = parse_config(
        {
            "selection": {"preset": "trl", "ties": "keep", "scope": "sequence"},
            "loss": {"preset": "dr_grpo", "clip_high": 0.4, "denominator": "selected"},
            "advantage": {"kind": "rloo"},
        }
    )
    assert (config.selection.ties, config.selection.scope) == ("keep", "sequence")
    assert config.selection.zero_advantage_in_pool  # the rest is still the preset's
    assert (config.loss.clip_high, config.loss.denominator) == (0.4, "selected")
    assert (config.loss.clip_low, config.advantage.kind) == (0.2, "rloo")


def test_presets_do_not_write_into_what_they_are_given() -> None:
    raw: dict[str, Any] = {"loss": {"preset": "grpo"}}
    parse_config(raw)
    assert raw == {"loss": {"preset": "grpo"}}


# ---- combinations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "words", "cure"),
    [
        (
            {"selection": {"rule": "threshold"}},
            "selection.rule = 'threshold' needs selection.threshold_nats",
            {"selection": {"rule": "threshold", "threshold_nats": 0.5}},
        ),
        (
            {"selection": {"threshold_nats": 0.5}},
            "threshold_nats is read by selection.rule = 'threshold' only",
            {"selection": {"threshold_nats": 0.5, "rule": "threshold"}},
        ),
        (
            {"loss": {"constant_tokens": 9}},
            "loss.constant_tokens is read by loss.denominator = 'constant' only",
            {"loss": {"constant_tokens": 9, "denominator": "constant"}},
        ),
        (
            {"selection": {"entropy": "current"}},
            "is known one mini-batch at a time: use selection.scope = 'minibatch', or",
            {"selection": {"entropy": "current"}, "training": {"mini_batches": 1}},
        ),
        (
            {"selection": {"scope": "microbatch"}},
            "set training.micro_batch_sequences",
            {"selection": {"scope": "microbatch"}, "training": {"micro_batch_sequences": 4}},
        ),
        (
            {"loss": {"denominator": "microbatch_selected"}},
            "'microbatch_selected' needs selection.scope = 'microbatch'",
            {
                "loss": {"denominator": "microbatch_selected"},
                "selection": {"scope": "microbatch"},
                "training": {"micro_batch_sequences": 4},
            },
        ),
        (
            {"overlong": {"buffer": 11}, "rollout": {"max_new_tokens": 10}},
            "overlong.buffer is larger than rollout.max_new_tokens",
            {"overlong": {"buffer": 10}, "rollout": {"max_new_tokens": 10}},
        ),
        (
            {"training": {"check_gradient_every": 5}},
            "training.check_gradient_every is read by training.gradient = 'local' only",
            {"training": {"check_gradient_every": 5, "gradient": "local"}},
        ),
        (
            {"training": {"gradient": "local", "keys_gb": 9.0}},
            "training.keys_gb needs training.first_hop = false",
            {"training": {"gradient": "local", "keys_gb": 9.0, "first_hop": False}},
        ),
        (
            {"training": {"gradient": "local", "live": "forks", "live_fraction": 0.5}},
            "training.live_fraction is not read by training.live = 'forks'",
            {"training": {"gradient": "local", "live": "random", "live_fraction": 0.5}},
        ),
        (
            {"training": {"gradient": "local", "rows": "padded"}},
            "training.rows = 'padded' is no layout of local gradients",
            {"training": {"gradient": "local", "rows": "tree"}},
        ),
    ],
)
def test_combinations_that_cannot_be(raw: dict[str, Any], words: str, cure: dict[str, Any]) -> None:
    message = fault(raw)
    assert words in message
    assert "Value error" not in message
    assert parse_config(cure) != RunConfig()


# ---- imports ------------------------------------------------------------------------------------


def test_a_configuration_is_read_without_torch() -> None:
    script = (
        "import sys; from forkpoint.config import load_config; load_config(None, ['name=x']);"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'scipy'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_section_without_a_type_is_the_default_one() -> None:
    config = parse_config({"task": {"seed": 3}, "rewards": [{"timeout_s": 9}]})
    assert (config.task.type, config.task.seed) == ("lab", 3)
    assert (config.rewards[0].type, config.rewards[0].timeout_s) == ("task", 9)
