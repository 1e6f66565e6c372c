"""The site's generated pages name everything, and its menu every page that is written by hand."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from forkpoint.cli.main import app
from forkpoint.config import RunConfig, parse_config

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import site_pages  # noqa: E402

SETTING = re.compile(r"`((?:\w+\.)+\w+)(?: = [^`]*)?`")


def settings(model: type[BaseModel], path: str = "") -> set[str]:
    """Every setting as ``section.key``."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        inner = f"{path}.{name}".removeprefix(".")
        parts = [settings(part, inner) for part in site_pages._models(field.annotation)]
        found |= set().union(*parts) if parts else {inner}
    return found


def test_every_setting_stands_in_its_section() -> None:
    section, found = "", set()
    for line in site_pages.settings_page().splitlines():
        if line.startswith("##"):
            section = re.findall(r"[\w.]+(?=\])", line)[0] + "."
        elif row := re.match(r"\| `(\w+)`", line):
            found.add(section + row[1])
    assert found == settings(RunConfig)


@pytest.mark.parametrize(
    "row",
    [
        "| `temperature`<br>= `1.0` | *number above 0* |",
        '| `engine`<br>= `"transformers"` | *text*<br>``transformers``, ``vllm``, or',
        "| `rank`<br>= `16` | *whole number at least 1* |",
        "| `keep_fraction`<br>= `0.2` | *number above 0 at most 1* |",
        "| `pattern`<br>required | *text* |",
        "| `timeout_s`<br>= `4.0` | *number above 0*<br>Per completion;",  # of the class above
        '| `compute_dtype`<br>= `"float32"` | *`float32` · `bfloat16`*<br>What a forward',
    ],
)
def test_a_setting_says_its_default_its_type_and_what_is_written_under_it(row: str) -> None:
    assert row in site_pages.settings_page()


def test_every_command_and_every_recipe_has_its_page() -> None:
    commands, recipes = site_pages.commands_page(), site_pages.recipes_page()
    for name in app.resolved_commands():
        if not name.startswith("-"):
            assert f"\n## forkpoint {name}\n" in commands
    assert "Table of Contents" not in commands
    for path in (ROOT / "src" / "forkpoint" / "recipes").rglob("*.toml"):
        assert path.read_text(encoding="utf-8") in recipes
    assert (
        "| [`lab_full`](#lab_full) | The baseline of lab_demo.toml: the policy gradient" in recipes
    )


def test_every_public_name_is_on_the_page_of_modules() -> None:
    page = site_pages.modules_page()
    for line in site_pages.PUBLIC_NAMES.read_text(encoding="utf-8").splitlines():
        module, _, name = line.rpartition(".")
        block = page.partition(f"::: forkpoint.{module}\n")[2].partition(":::")[0]
        assert f'"{name}"' in block


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.name for path in ROOT.glob("docs/*.md")}
    assert {page for page in pages if f": {page}\n" not in menu} == set()


@pytest.mark.parametrize("page", ["trl.md", "verl.md"])
def test_settings_that_correspond_to_anothers_are_there(page: str) -> None:
    known = settings(RunConfig)
    rows = [
        line.split("|")[2]
        for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and line.count("|") == 4
    ]
    named = {name for row in rows for name in SETTING.findall(row)}
    assert len(named) > 15
    assert named - known == set()


TOML = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["your-model.md", "trl.md", "verl.md", "selection.md"])
def test_recipes_on_a_page_are_recipes(page: str) -> None:
    blocks = TOML.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        parse_config(tomllib.loads(block))


def test_the_result_on_the_first_page_is_the_readmes() -> None:
    first = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    numbers = [line[4:] for line in first.splitlines() if "n = 1000" in line]
    assert len(numbers) == 4
    assert [line for line in numbers if line not in readme] == []
