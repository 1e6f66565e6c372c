"""What the documentation shows is run: its Python, and the notebook."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from forkpoint.cli.main import app
from forkpoint.config import load_config, parse_config
from forkpoint.config.load import RECIPES
from forkpoint.plan.gpus import gpu_of
from forkpoint.plan.report import planned
from forkpoint.plan.step import Assumed

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import docs_figures  # noqa: E402
import smollm2_results  # noqa: E402
import study_tables  # noqa: E402

SNIPPET = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted((*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
TOML = re.compile(r"^```toml\n(.*?)^```", re.DOTALL | re.MULTILINE)
RECIPE_PARTS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in PAGES
    if path.stem != "ablation"
    for number, block in enumerate(TOML.findall(path.read_text(encoding="utf-8")))
]
WITH_SNIPPETS = [path for path in PAGES if SNIPPET.search(path.read_text(encoding="utf-8"))]
SHIPPED = {path.stem for path in RECIPES.glob("*.toml")}
NOTEBOOK = ROOT / "examples" / "first_look.ipynb"


@pytest.mark.parametrize("path", WITH_SNIPPETS, ids=lambda path: path.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for snippet in SNIPPET.findall(path.read_text(encoding="utf-8")):
        exec(compile(snippet, path.name, "exec"), names)


def test_there_is_python_on_the_page_of_the_api() -> None:
    assert ROOT / "docs" / "api.md" in WITH_SNIPPETS


COMMAND = re.compile(
    r"^    (?:make \w+ && )?((?:forkpoint|python -m forkpoint\.lab\.base_policy) (?:.*\\\n)*.*)$",
    re.MULTILINE,
)
SHOWN = [
    (path.name, shlex.split(text.replace("\\\n", " "), comments=True))
    for path in PAGES
    for text in COMMAND.findall(path.read_text(encoding="utf-8"))
]
FORMS = ("COMMAND", "[-")
"""How a word begins of what is the form of a command and no command."""
COMMANDS = [(page, words) for page, words in SHOWN if not any(w.startswith(FORMS) for w in words)]


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS]
)
def test_a_command_that_a_page_shows_is_one(page: str, words: list[str]) -> None:
    if words[0] == "python":
        known = subprocess.run([sys.executable, *words[1:3], "--help"], capture_output=True)
        options = [word for word in words[3:] if word.startswith("--")]
        assert [one for one in options if one not in known.stdout.decode()] == []
        assert "--world" in options
        return
    function, bound, _ = app.parse_args(words[1:], print_error=False, exit_on_error=False)
    given = bound.arguments
    if function.__name__ == "train" and (recipe := given.get("recipe")) in SHIPPED:
        load_config(recipe, given.get("set_") or [])


def test_there_are_commands_on_pages() -> None:
    assert len(COMMANDS) > 40


LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_between_files_lead_somewhere(path: Path) -> None:
    links = LINK.findall(path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


SAYS = re.compile(r'aria-label="([^"]*)"')


def test_the_pictures_are_of_the_results_that_are_stored(tmp_path: Path) -> None:
    docs_figures.main(tmp_path)
    drawn = {path.name: SAYS.findall(path.read_text()) for path in tmp_path.glob("*.svg")}
    stored = {
        path.name: SAYS.findall(path.read_text()) for path in docs_figures.FIGURES.glob("*.svg")
    }
    assert drawn
    assert all(drawn.values())
    assert drawn == stored, "python scripts/docs_figures.py"


def test_the_studys_tables_are_of_the_results_that_are_stored() -> None:
    page = study_tables.PAGE.read_text(encoding="utf-8")
    stored = json.loads(study_tables.RESULTS.read_text(encoding="utf-8"))["runs"]
    shown = {cell for _, cell, _, _ in study_tables.MARKED.findall(page)}
    assert shown == {run["cell"] for run in stored}
    assert study_tables.with_tables(page) == page, "python scripts/study_tables.py"


def test_smollm2s_tables_are_of_the_results_that_are_stored() -> None:
    stored = json.loads(smollm2_results.RESULTS.read_text(encoding="utf-8"))
    page = study_tables.PAGE.read_text(encoding="utf-8")
    assert smollm2_results.tokens_table(stored) in page
    assert smollm2_results.gradients_table(stored) in page


@pytest.mark.parametrize("block", RECIPE_PARTS)
def test_the_toml_of_a_page_is_a_recipe(block: str) -> None:
    parse_config(tomllib.loads(block))


def test_archers_recipe_leaves_the_kl_penalty_out_where_entropy_is_high() -> None:
    page = (ROOT / "docs" / "selection.md").read_text(encoding="utf-8")
    (block,) = [one for one in TOML.findall(page) if "Archer" in one]
    loss = parse_config(tomllib.loads(block)).loss
    assert loss.kl_coefficient > 0
    assert loss.marked is not None
    assert loss.marked.kl_coefficient == 0


@pytest.mark.parametrize("gpus", [8, 64])
@pytest.mark.parametrize("model", ["8B", "14B", "32B"])
def test_the_papers_runs_are_planned_as_the_page_says(model: str, gpus: int) -> None:
    assumed = Assumed(prompt=200, length=6826, flat=0.5)
    config = load_config(f"qwen3_{model.lower()}_paper")
    plan = planned(config, assumed, gpus, gpu_of("h100"))
    work, seconds = plan.operations, plan.seconds
    unfit = "" if plan.fits else ": does not fit"
    spent = " + ".join(f"{seconds[name]:,.0f}" for name in ("sampling", "old", "sparse"))
    line = (
        f"| {model}, {gpus} | {plan.memory.peak / 1e9:.0f} GB{unfit} | {work.sampling:.1e} | "
        f"{work.old:.1e} | {work.dense:.1e} | {work.sparse / work.dense:.2f} | "
        f"{work.local / work.dense:.2f} | {spent} s |"
    )
    assert line in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
def test_the_notebook_runs_from_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient
    import nbformat

    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")  # Jupyter warns without it
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [
        output["data"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "data" in output
    ]
    texts = [data.get("text/plain", "") for data in shown]
    assert "3" in texts  # steps made
    assert any("Estimate(value=" in text for text in texts)
    assert any(re.search(r"False,\s+True", text) for text in texts)  # the forks of the tensor
    assert any("of the entropy" in text for text in texts)
    assert any("<svg" in str(data.get("image/svg+xml", "")) for data in shown)


def test_the_notebook_is_stored_without_what_it_printed() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)


def test_the_page_on_installing_names_the_extras_and_floors_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "install.md").read_text()
    found = {}
    for row in re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE):
        found[row[0]] = re.findall(r"`(.*?)`", row[1])
    extras = {k: v for k, v in project["optional-dependencies"].items() if k != "dev"}
    assert found == extras
    floors = dict(line.split(">=") for line in project["dependencies"])
    assert f"torch {floors['torch']} or later" in page
    assert f"transformers {floors['transformers']} or later" in page
    assert f"transformers=={floors['transformers']}.0" in (ROOT / "Makefile").read_text()
