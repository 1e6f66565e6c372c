"""A user's function by its dotted path, and what is said when it raises."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forkpoint.dotted import call_users, resolve
from forkpoint.errors import ConfigError, DataError, UserCodeError
from forkpoint.selection.rules import RULES


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


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = x / 0\n", "ZeroDivisionError: division by zero ({file}, line 2)"),
        ("import json\njson.loads('{')\n", "JSONDecodeError: Expecting .* \\({file}, line 2\\)"),
        ("def f(:\n    pass\n", "SyntaxError: .* \\({file}, line 1\\)"),
        ("import sys\n\nsys.exit()\n", "SystemExit ({file}, line 3)"),
        ("def g():\n    raise KeyError('k')\n\n\ng()\n", "KeyError: 'k' ({file}, line 2)"),
        ("import no_such_module_of_ours\n", "ModuleNotFoundError: No .* \\({file}, line 1\\)"),
    ],
)
def test_a_module_that_raises_is_one_line_with_its_place(here: Path, text: str, said: str) -> None:
    file = here / "raises_of_a_test.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        resolve("raises_of_a_test:f", "selection.rule")
    expected = said.format(file=file) if ".*" in said else re.escape(said.format(file=file))
    assert re.fullmatch(
        "selection.rule = 'raises_of_a_test:f': cannot import 'raises_of_a_test': " + expected,
        str(caught.value),
    )
    assert caught.value.__cause__ is not None


def test_a_function_that_raises_is_one_line_with_its_place(here: Path) -> None:
    file = here / "raises_of_a_test.py"
    file.write_text(
        "import json\n\n\ndef f(text):\n    return g(text)\n\n\n"
        "def g(text):\n    return json.loads(text)\n"
    )
    function = resolve("raises_of_a_test:f", "selection.rule")
    assert call_users(function, "7", setting="s") == 7
    with pytest.raises(UserCodeError) as caught:
        call_users(function, "{", setting="selection.rule = 'raises_of_a_test:f'")
    message = str(caught.value)
    assert message.startswith("selection.rule = 'raises_of_a_test:f' raised JSONDecodeError: Exp")
    assert message.endswith(f"({file}, line 9)")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_function_without_a_line_of_its_own() -> None:
    with pytest.raises(UserCodeError, match=r"^s raised ValueError: invalid literal .*'x'$"):
        call_users(int, "x", setting="s")


def test_what_this_package_raises_passes_as_it_is() -> None:
    def refuse() -> None:
        raise DataError("the script has no sample 3")

    with pytest.raises(DataError, match="no sample 3"):
        call_users(refuse, setting="s")
    with pytest.raises(AttributeError):  # a fault of the package's own keeps its traceback
        call_users(RULES["top"], None, setting="s")
