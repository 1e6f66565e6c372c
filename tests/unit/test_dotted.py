"""A user's function by its dotted path."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkpoint.dotted import resolve
from forkpoint.errors import ConfigError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for file in tmp_path.glob("*.py"):
        sys.modules.pop(file.stem, None)


def test_functions_and_classes_are_found() -> None:
    assert resolve("json:dumps", "k") is sys.modules["json"].dumps
    assert resolve("pathlib:Path", "k") is Path


def test_working_directory_is_importable(here: Path) -> None:
    (here / "my_rewards_of_a_test.py").write_text("def f():\n    return 7\n")
    assert resolve("my_rewards_of_a_test:f", "rewards.path")() == 7
    resolve("my_rewards_of_a_test:f", "rewards.path")
    assert sys.path.count(str(here)) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("json", "k = 'json' is neither a known name nor package.module:function"),
        ("json:dump_s", "k = 'json:dump_s': json has no 'dump_s'; did you mean json:dumps?"),
        ("json:", "k = 'json:': json has no ''"),
        ("json:__name__", "k = 'json:__name__' is not a function but str"),
        (
            "no_such_module_of_ours:f",
            "k = 'no_such_module_of_ours:f': cannot import 'no_such_module_of_ours': "
            "No module named 'no_such_module_of_ours'",
        ),
        (":f", "k = ':f': cannot import '': Empty module name"),
    ],
)
def test_mistakes_are_named(path: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(path, "k")
    assert str(caught.value) == message


def test_module_that_cannot_be_imported_says_why(here: Path) -> None:
    (here / "needs_more_of_a_test.py").write_text("import no_such_module_of_ours\n")
    with pytest.raises(ConfigError, match="No module named 'no_such_module_of_ours'"):
        resolve("needs_more_of_a_test:f", "rewards.path")
