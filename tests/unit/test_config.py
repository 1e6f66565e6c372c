"""What a recipe and ``--set`` may say, and what is said about a fault in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from forkpoint.config import RunConfig, load_config, parse_config
from forkpoint.config.load import RECIPES, recipe_path
from forkpoint.config.rewards import (
    CodeRewardConfig,
    CustomRewardConfig,
    FormatRewardConfig,
    IntegerRewardConfig,
    MathRewardConfig,
    TaskRewardConfig,
)
from forkpoint.config.stages import DataTaskConfig, GymTaskConfig, LabTaskConfig
from forkpoint.errors import ConfigError

ROOT = Path(__file__).parents[2]
NEEDED: dict[type[BaseModel], dict[str, Any]] = {
    LabTaskConfig: {},
    GymTaskConfig: {"name": "chain_sum"},
    DataTaskConfig: {"path": "rows.jsonl"},
    TaskRewardConfig: {},
    MathRewardConfig: {},
    IntegerRewardConfig: {},
    CodeRewardConfig: {},
    FormatRewardConfig: {"pattern": ".*"},
    CustomRewardConfig: {"path": "mine:f"},
}
"""The members of unions, with the keys that have no default."""


def fault(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw)
    return str(caught.value)


def tag_of(member: type[BaseModel]) -> str:
    return get_args(member.model_fields["type"].annotation)[0]


def placed(member: type[BaseModel], **given: Any) -> tuple[dict[str, Any], str]:
    """A configuration that holds a member of a union, and the dotted path to it."""
    filled = {"type": tag_of(member), **NEEDED[member], **given}
    if member.__name__.endswith("TaskConfig"):
        return {"task": filled}, "task"
    return {"rewards": [{"type": "task"}, filled], "scoring": {"allow_code": True}}, "rewards.1"


# ---- typos --------------------------------------------------------------------------------------


def every_key() -> Iterator[tuple[dict[str, Any], str, str]]:
    """(configuration with one misspelt key, its dotted path, the path that was meant)."""
    for name, section in RunConfig.model_fields.items():
        yield {f"{name}x": {}}, f"{name}x", name
        if isinstance(section.annotation, type) and issubclass(section.annotation, BaseModel):
            for key in section.annotation.model_fields:
                yield {name: {f"{key}x": 1}}, f"{name}.{key}x", f"{name}.{key}"
    for member in NEEDED:
        for key in member.model_fields:
            raw, path = placed(member, **{f"{key}x": 1})
            yield raw, f"{path}.{key}x", f"{path}.{key}"


@pytest.mark.parametrize(("raw", "typo", "meant"), list(every_key()))
def test_a_typo_suggests_the_key_that_was_meant(raw: dict[str, Any], typo: str, meant: str) -> None:
    message = fault(raw)
    assert message == f"the configuration: unknown key {typo}; did you mean {meant}?"


def test_every_union_member_is_checked() -> None:
    unions = [RunConfig.model_fields[name].annotation for name in ("task", "rewards")]

    def members(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield annotation
        for argument in get_args(annotation):
            yield from members(argument)

    assert {m for union in unions for m in members(union)} == set(NEEDED)


def test_a_key_like_no_other_gets_no_suggestion() -> None:
    assert fault({"loss": {"qqqq": 1}}) == "the configuration: unknown key loss.qqqq"
    # of another section, or of another member of the union: not offered
    assert "did you mean" not in fault({"loss": {"gradient_checkpointing": True}})
    raw, path = placed(MathRewardConfig, pattern="x")
    assert fault(raw) == f"the configuration: unknown key {path}.pattern"


def test_all_faults_are_reported_at_once() -> None:
    message = fault(
        {
            "modle": {},
            "task": {"type": "gym", "name": "x", "chta": True},
            "rewards": [{"type": "math", "weight": "heavy"}, {"type": "custom"}],
            "rollout": {"group_size": 1},
            "optim": {"lr": 0},
        }
    )
    expected_faults = [
        "unknown key modle; did you mean model?",
        "unknown key task.chta; did you mean task.chat?",
        "rewards.0.weight: Input should be a valid number, unable to parse string as a number "
        "(given 'heavy')",
        "rewards.1.path: Field required (given {'type': 'custom'})",
        "rollout.group_size: Input should be greater than or equal to 2 (given 1)",
        "optim.lr: Input should be greater than 0 (given 0)",
    ]
    assert all(expected in message for expected in expected_faults)
    parts = message.removeprefix("the configuration: ").replace("; did", " did").split("; ")
    assert len(parts) == len(expected_faults)


def test_a_word_in_the_place_of_a_list() -> None:
    expected = """the configuration: tracking.to: expected a list, such as ["wandb"]"""
    assert fault({"tracking": {"to": "wandb"}}) == f"{expected} (given 'wandb')"


def test_an_empty_list_of_rewards_is_a_fault_beside_others() -> None:
    assert "rewards: " in fault({"rewards": []})
    message = fault({"rewards": [], "training": {"steps": -1}})
    assert "rewards: " in message
    assert "training.steps: " in message
    # but a list that is too short only because its item is faulty is one fault
    message = fault({"rewards": [{"type": "math", "wieght": 1}]})
    expected = "unknown key rewards.0.wieght; did you mean rewards.0.weight?"
    assert message == f"the configuration: {expected}"


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({"task": {"type": "lba"}}, "task: "),
        ({"task": 3}, "task: "),
        ({"rewards": [{"type": "maths"}]}, "rewards.0: "),
        ({"loss": {"preset": "ppo"}}, "loss.preset: "),
        ({"loss": {"preset": ["dapo"]}}, "loss.preset: "),
        ({"loss": "dapo"}, "loss: "),
        ({"selection": {"preset": "papre"}}, "selection.preset: "),
        ({"selection": ["top"]}, "selection: "),
        ({"selection": {"keep_fraction": 0}}, "selection.keep_fraction: "),
        ({"selection": {"keep_fraction": 1.5}}, "selection.keep_fraction: "),
        ({"loss": {"dual_clip": 1.0}}, "loss.dual_clip: "),
        ({"optim": {"lr": float("inf")}}, "optim.lr: "),
        ({"optim": {"lr": float("nan")}}, "optim.lr: "),
        ({"rollout": {"temperature": 0}}, "rollout.temperature: "),
        ({"name": "../elsewhere"}, "name: "),
        ({"name": ""}, "name: "),
    ],
)
def test_a_value_that_cannot_be_is_named(raw: dict[str, Any], where: str) -> None:
    assert fault(raw).startswith(f"the configuration: {where}")


def test_anything_but_a_mapping_is_refused() -> None:
    with pytest.raises(ConfigError, match="valid dictionary"):
        parse_config([1])  # pyright: ignore[reportArgumentType]


# ---- --set --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("optim.lr=3e-4", "optim", "lr", 3e-4),
        ("optim.lr = 1", "optim", "lr", 1.0),
        ("training.steps=1_000", "training", "steps", 1000),
        ("rollout.dynamic_sampling=false", "rollout", "dynamic_sampling", False),
        ("model.path=models/smollm2", "model", "path", "models/smollm2"),
        ('model.path="a = b"', "model", "path", "a = b"),
        ("model.path=a=b", "model", "path", "a=b"),
        ("model.device=cuda:1", "model", "device", "cuda:1"),
        (" selection.rule =bottom", "selection", "rule", "bottom"),
    ],
)
def test_set(override: str, section: str, key: str, value: Any) -> None:
    config = load_config(None, [override])
    assert getattr(getattr(config, section), key) == value


def test_set_takes_lists_and_tables_and_goes_in_order() -> None:
    config = load_config(
        None,
        [
            'rewards=[{type = "task"}, {type = "format", pattern = "a+", weight = 0.5}]',
            "task.type=gym",
            "task.name=chain_sum",
            "task.parameters={min_terms = 2}",
            "task.parameters.max_terms=3",
            "training.steps=1",
            "training.steps=2",
            "name=mine",
        ],
    )
    assert config.rewards == (
        TaskRewardConfig(),
        FormatRewardConfig(type="format", pattern="a+", weight=0.5),
    )
    assert isinstance(config.task, GymTaskConfig)
    assert config.task.parameters == {"min_terms": 2, "max_terms": 3}
    assert (config.training.steps, config.name) == (2, "mine")


@pytest.mark.parametrize("override", ["training.steps", "=3", "  = 3", ""])
def test_set_without_a_key_or_a_value(override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value"):
        load_config(None, [override])


def test_set_into_a_value() -> None:
    with pytest.raises(ConfigError, match="'steps' is a value, not a section"):
        load_config(None, ["training.steps=3", "training.steps.more=1"])


def test_set_names_its_typos_and_where_they_come_from() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["training.stesp=3"])
    expected = "unknown key training.stesp; did you mean training.steps?"
    assert str(caught.value) == f"the command line: {expected}"


# ---- files --------------------------------------------------------------------------------------


def test_a_recipe_with_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[training]\nsteps = 7\nseed = 1\n', encoding="utf-8")
    config = load_config(recipe, ["training.seed=2"])
    assert (config.name, config.training.steps, config.training.seed) == ("mine", 7, 2)
    with pytest.raises(ConfigError, match=r"mine\.toml: unknown key training\.sede"):
        load_config(recipe, ["training.sede=2"])


def test_no_file_is_the_defaults() -> None:
    assert load_config(None) == RunConfig() == parse_config({})


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "lab_demo.toml").touch()
    with pytest.raises(ConfigError, match=r"no file .*; did you mean .*lab_demo\.toml\?"):
        load_config(tmp_path / "lab_dmeo.toml")
    with pytest.raises(
        ConfigError, match=r"no file .*nowhere/lab_demo\.toml; did you mean lab_demo\?"
    ):
        load_config(tmp_path / "nowhere" / "lab_demo.toml")
    with pytest.raises(ConfigError, match=r"there is no file .*zzz\.toml$"):
        load_config(tmp_path / "zzz.toml")
    (tmp_path / "zzzz.log").touch()  # no file of settings
    with pytest.raises(ConfigError, match=r"there is no file .*zzzz\.toml$"):
        load_config(tmp_path / "zzzz.toml")


def test_a_preset_on_top_of_settings_that_are_all_written_out_is_refused(tmp_path: Path) -> None:
    stored = tmp_path / "config.json"
    stored.write_text(load_config(None).model_dump_json())
    for override in ("selection.preset=trl", 'loss.preset = "gspo"'):
        with pytest.raises(ConfigError, match=r"a preset changes none that is there: set what"):
            load_config(stored, [override])
    same = ["selection.preset=forkpoint", "optim.lr=0.5"]
    assert load_config(stored, same) == load_config(None, ["optim.lr=0.5"])


def test_a_recipe_of_another_kind_is_not_suggested() -> None:
    with pytest.raises(ConfigError, match="no recipe 'lab_demo'") as caught:
        recipe_path("lab_demo", RECIPES / "ablations")
    assert "did you mean lab_demo" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.toml", b"[training\n"),
        ("a.toml", b"\xff\xfe"),
        ("a.json", b"{"),
        ("a.toml", b"a = 1\na = 2\n"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{name} cannot be read: "):
        load_config(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot be read: "):
        load_config(tmp_path)  # a folder


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "src" / "forkpoint" / "recipes").glob("*.toml")), ids=lambda p: p.name
)
def test_every_recipe_is_a_configuration(recipe: Path) -> None:
    assert load_config(recipe) != RunConfig()


@pytest.mark.parametrize("given", ["bfloat16", "float32"])
def test_an_old_recipe_is_told_what_to_write(tmp_path: Path, given: str) -> None:
    recipe = tmp_path / "old.toml"
    recipe.write_text(f'[model]\ndtype = "{given}"\n')
    with pytest.raises(ConfigError, match=r"model.dtype = '\w+': .* model.compute_dtype") as told:
        load_config(recipe)
    assert "config.json" in str(told.value)  # of a run, where writing the new key helps nobody
    assert "\n" not in str(told.value)


def test_a_folder_of_a_recipes_name_is_not_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("lab_demo").name == "demo"
