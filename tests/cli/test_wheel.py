"""The package as it is installed: recipes, templates and the shipped policy travel in the wheel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_an_installed_wheel_trains_in_an_empty_folder(tmp_path: Path) -> None:
    here, site = tmp_path / "empty", tmp_path / "site-packages"
    here.mkdir()

    def python(*arguments: str) -> str:
        # The wheel goes first: this checkout is installed editable in the same environment.
        environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    build = ("-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation")
    python(*build, "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("*.whl")
    python("-m", "pip", "--quiet", "install", "--no-deps", "--target", str(site), str(wheel))
    assert python("-c", "import forkpoint; print(forkpoint.__file__)").startswith(str(site))

    quick = ("training.steps=1", "rollout.prompts_per_step=4", "evaluation.every=0")
    settings = [part for setting in quick for part in ("--set", setting)]
    python("-m", "forkpoint", "train", "lab_demo", *settings, "--run-dir", "run")
    page = python("-m", "forkpoint", "report", "run").strip()
    assert (here / page).stat().st_size > 50_000
    assert (site / "forkpoint" / "py.typed").exists()
    recipes = {path.name for path in (site / "forkpoint" / "recipes").iterdir()}
    assert recipes == {path.name for path in (ROOT / "src/forkpoint/recipes").iterdir()}
    assert sorted(path.name for path in here.iterdir()) == ["report.html", "run"]
