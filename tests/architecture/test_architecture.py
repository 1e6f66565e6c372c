"""The shape of the code: imports go one way, files and functions stay short, nothing runs data."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "forkpoint"
MODULES = sorted(PACKAGE.rglob("*.py"))
PUBLIC_NAMES = Path(__file__).with_name("public_names.txt")

LAYERS: tuple[set[str], ...] = (
    {"errors", "types"},
    {"config", "dotted", "hub", "randomness", "environment", "ranks"},
    {"runs", "advantages", "entropy"},
    {"lab", "batching", "selection", "losses", "tracking"},
    {"verifiers"},
    {"tasks"},
    {"rewards"},
    {"policy"},
    {"sampling"},
    {"evaluation"},
    {"analysis"},
    {"training", "figures", "demo", "plan", "ablation", "integrations"},
    {"report"},
    {"api"},
    {"cli"},
    {"__main__"},
)
"""A package imports from the layers above its own line only."""

LIBRARIES: dict[str, set[str]] = {
    "torch": {
        *("types", "environment", "ranks", "entropy", "batching", "selection", "losses", "lab"),
        *("policy", "sampling", "analysis", "training", "cli", "plan", "integrations"),
    },
    "trl": {"integrations"},
    "verl": {"integrations"},
    "transfer_queue": {"integrations"},
    "tensordict": {"integrations"},
    "transformers": {"lab", "policy", "sampling", "analysis", "plan"},
    "tokenizers": {"lab"},
    "peft": {"policy"},
    "safetensors": {"policy", "training", "sampling"},
    "numpy": {
        *("types", "randomness", "lab", "batching", "policy", "selection", "sampling"),
        *("evaluation", "analysis", "training", "report", "runs", "figures"),
    },
    "scipy": {"evaluation"},
    "pydantic": {"config", "runs", "ablation"},
    "pyarrow": {"runs", "analysis"},
    "pebble": {"rewards"},
    "math_verify": {"verifiers"},
    "latex2sympy2_extended": {"verifiers"},
    "reasoning_gym": {"verifiers"},
    "datasets": {"tasks"},
    "huggingface_hub": {"hub", "plan"},
    "jinja2": {"report"},
    "markupsafe": {"report", "figures"},
    "altair": {"figures"},
    "vl_convert": {"figures"},
    "trackio": {"tracking"},
    "wandb": {"tracking"},
    "tensorboard": {"tracking"},
    "cyclopts": {"cli"},
    "rich": {"cli"},
}
"""Who may import what is not ours and not Python's."""

UNDOCUMENTED = {
    "lab.base_policy.main",
    "losses.surrogates.cispo",
}
"""Public and without a docstring: entries of tables and records whose fields are documented."""

INSIDE_THE_SANDBOX = {"verifiers.inside": ["exec()", "compile()"]}
"""What runs the programs of completions, where it can do no harm."""

SNAPSHOT = (
    "types",
    "errors",
    "config",
    "selection",
    "losses",
    "entropy",
    "batching",
    "sampling",
    "verifiers",
    "rewards",
    "tasks",
    "runs",
    "evaluation.evaluate",
)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def dotted(path: Path) -> str:
    """``src/forkpoint/rewards/build.py`` -> ``rewards.build``; a package is its folder's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def home(path: Path) -> str:
    """The folder or file directly under ``forkpoint`` that a module belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def checked_only(module: ast.Module) -> set[ast.AST]:
    """What stands under ``if TYPE_CHECKING``: seen by type checkers, never run."""
    return {
        inner
        for node in ast.walk(module)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }


def imported(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules named by import statements among ``nodes``, those in functions included."""
    skipped = checked_only(tree(path))
    for node in nodes:
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in OUR_MODULES else str(node.module)


OUR_MODULES = {f"forkpoint.{dotted(path)}".rstrip(".") for path in MODULES}


def everything_imported(path: Path) -> set[str]:
    return set(imported(path, ast.walk(tree(path))))


def imported_at_once(path: Path) -> set[str]:
    """What is imported when the module is, and not later by a function of it."""
    return set(imported(path, iter(tree(path).body)))


# ---- imports -------------------------------------------------------------------------------------


def test_every_package_has_its_layer() -> None:
    layered = [name for layer in LAYERS for name in layer]
    assert sorted(layered) == sorted({home(path) for path in MODULES} - {"__init__"})


def test_packages_import_from_the_layers_above_only() -> None:
    layer_of = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    layer_of[""] = -1  # the version, from forkpoint/__init__.py
    wrong = [
        f"{dotted(path)} imports {name}"
        for path in MODULES
        for name in everything_imported(path)
        if name.split(".")[0] == "forkpoint"
        and (other := name.partition(".")[2].partition(".")[0]) != (mine := home(path))
        and layer_of[other] >= layer_of[mine]
    ]
    assert wrong == []


def test_no_module_is_imported_in_a_circle() -> None:
    graph = {
        f"forkpoint.{dotted(path)}".rstrip("."): {
            name for name in imported_at_once(path) if name in OUR_MODULES
        }
        for path in MODULES
    }
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert order.index("forkpoint.types") < order.index("forkpoint.training.loop")


def test_only_the_command_line_knows_the_report() -> None:
    importers = {
        home(path)
        for path in MODULES
        if any(name.startswith("forkpoint.report") for name in everything_imported(path))
    }
    assert importers == {"report", "cli"}


def test_sampling_knows_of_the_policy_what_a_model_is_and_nothing_of_its_gradients() -> None:
    known = {
        name
        for path in MODULES
        if home(path) == "sampling"
        for name in everything_imported(path)
        if name.startswith("forkpoint.policy")
    }
    parts = ("body", "checks", "head", "keys", "load", "served", "teacher")
    assert known == {f"forkpoint.policy.{part}" for part in parts}


def test_libraries_are_imported_where_they_belong() -> None:
    found: dict[str, set[str]] = {}
    for path in MODULES:
        for name in everything_imported(path):
            library = name.split(".")[0]
            if library != "forkpoint" and library not in sys.stdlib_module_names:
                found.setdefault(library, set()).add(home(path))
    assert found.keys() == LIBRARIES.keys()
    strangers = {library: homes - LIBRARIES[library] for library, homes in found.items()}
    assert {library: homes for library, homes in strangers.items() if homes} == {}


def test_optional_libraries_are_imported_by_functions_of_one_file() -> None:
    optional = {"math_verify", "reasoning_gym", "datasets", "scipy", "vl_convert", "transformers"}
    homes: dict[str, set[str]] = {}
    for path in MODULES:
        roots = {name.split(".")[0] for name in everything_imported(path)} & optional
        for root in roots:
            homes.setdefault(root, set()).add(dotted(path))
        assert not {name.split(".")[0] for name in imported_at_once(path)} & optional
    assert {root: len(files) for root, files in homes.items() if root != "transformers"} == {
        "math_verify": 1,
        "reasoning_gym": 1,
        "datasets": 1,
        "scipy": 1,
        "vl_convert": 1,
    }


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (("config",), ("torch", "transformers", "numpy", "pyarrow")),
        (("tasks.data", "tasks.gym", "tasks.lab", "rewards", "runs"), ("torch", "transformers")),
        (("report", "demo"), ("torch", "transformers", "forkpoint.training", "forkpoint.policy")),
        (
            ("policy", "sampling.transformers", "training.step", "training.checkpoint"),
            ("pyarrow", "pebble", "scipy", "rich", "cyclopts", "jinja2", "datasets"),
        ),
        (("advantages", "batching", "entropy", "selection", "losses"), ("transformers", "pebble")),
        (("cli.main",), ("torch", "transformers", "numpy", "pydantic", "forkpoint.config")),
    ],
)
def test_importing_loads_nothing_heavier(modules: tuple[str, ...], absent: tuple[str, ...]) -> None:
    # the statements above are not all: what a module imports imports more
    code = (
        "import json, sys\n"
        + "".join(f"import forkpoint.{module}\n" for module in modules)
        + "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {f"forkpoint.{module}" for module in modules} <= loaded
    assert not loaded & set(absent)


FLOOR = (
    *("entropy", "selection.scopes", "selection.tokens", "losses.batch_loss", "losses.tokens"),
    *("batching.batch", "integrations.verl", "integrations.verl_plugin"),
)
"""What anyone's training loop may use, with torch, numpy and pydantic alone."""


def test_the_floor_needs_torch_numpy_and_pydantic_alone() -> None:
    others = ("pyarrow", "scipy", "transformers", "tokenizers", "safetensors", "peft", "datasets")
    others += ("pebble", "jinja2", "markupsafe", "altair", "cyclopts", "rich", "huggingface_hub")
    others += ("verl", "ray", "trl")
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in others)
    code = f"import sys\n{blocked}" + "".join(f"import forkpoint.{name}\n" for name in FLOOR)
    code += (
        "import torch, forkpoint\n"
        "print(forkpoint.select_tokens(torch.tensor([0.1, 2.0]), keep_fraction=0.5).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[False, True]\n", done.stderr


# ---- size and words ------------------------------------------------------------------------------


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_files_have_400_lines_at_most() -> None:
    files = [*MODULES, *ROOT.glob("scripts/*.py"), *ROOT.glob("examples/*.py")]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_functions_have_80_lines_at_most_and_half_of_them_12() -> None:
    lengths = {
        f"{dotted(path)}.{node.name}": lines_of(node)
        for path in MODULES
        for node in functions(path)
    }
    assert {name: length for name, length in lengths.items() if length > 80} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 12


def test_every_module_says_what_it_is() -> None:
    assert [dotted(path) for path in MODULES if not ast.get_docstring(tree(path))] == []


Documented: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Documented]]:
    """Public functions and classes, and the methods of the latter."""
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if child.name.startswith("_"):
            continue
        yield f"{prefix}.{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from public(child, f"{prefix}.{child.name}")


def speaks_for_itself(node: Documented) -> bool:
    """A function of one statement."""
    return not isinstance(node, ast.ClassDef) and len(node.body) == 1


def test_what_is_public_says_what_it_does() -> None:
    silent = {
        name
        for path in MODULES
        for name, node in public(tree(path), dotted(path))
        if not ast.get_docstring(node) and not speaks_for_itself(node)
    }
    assert silent - UNDOCUMENTED == set()


# ---- safety --------------------------------------------------------------------------------------


def dangers(path: Path) -> Iterator[str]:
    for name in everything_imported(path):
        if name.split(".")[0] in {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}:
            yield f"import {name}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in {"eval", "exec", "compile", "os.system", "torch.load", "pickle.loads"}:
                yield f"{called}()"
            for keyword in node.keywords:
                given = ast.unparse(keyword.value)
                if keyword.arg in {"trust_remote_code", "shell"} and given != "False":
                    yield f"{keyword.arg}={given}"


def test_nothing_that_was_read_is_run() -> None:
    found = {dotted(path): list(dangers(path)) for path in MODULES}
    assert {name: what for name, what in found.items() if what} == INSIDE_THE_SANDBOX


def test_what_runs_programs_is_called_by_nobody_here() -> None:
    # its text is given to the Python of the sandbox; others take its constants
    taken = {
        alias.name
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.module == "forkpoint.verifiers.inside"
        for alias in node.names
    }
    assert {name for name in taken if not name.isupper()} == set()


def test_dangers_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "import pickle\nfrom torch import load\nmodel.eval()\n"
        "def f(x):\n    import dill\n    eval(x)\n    torch.load(x)\n"
        "    g(trust_remote_code=True)\n    g(trust_remote_code=False)\n"
    )
    assert sorted(dangers(path)) == [
        "eval()",
        "import dill",
        "import pickle",
        "torch.load()",
        "trust_remote_code=True",
    ]


# ---- names ---------------------------------------------------------------------------------------


def public_names(module: str) -> list[str]:
    """``__all__`` of a package; what a plain module defines itself and does not hide."""
    path = PACKAGE.joinpath(*module.split("."))
    if path.is_dir():
        for node in tree(path / "__init__.py").body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return sorted(ast.literal_eval(node.value))
        raise AssertionError(f"{module} has no __all__")
    names = []
    for node in tree(path.with_suffix(".py")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [ast.unparse(target) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            names.append(ast.unparse(node.target))
    return sorted(name for name in names if not name.startswith("_"))


def test_public_names_are_the_agreed_ones() -> None:
    # a name that goes breaks someone's import: change public_names.txt only together with CHANGELOG
    now = [f"{module}.{name}" for module in SNAPSHOT for name in public_names(module)]
    assert now == PUBLIC_NAMES.read_text(encoding="utf-8").splitlines()


def test_public_names_are_there() -> None:
    import importlib

    for line in PUBLIC_NAMES.read_text(encoding="utf-8").splitlines():
        module, _, name = line.rpartition(".")
        assert hasattr(importlib.import_module(f"forkpoint.{module}"), name), line
