"""What a run ran on."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from forkpoint.environment import CORE_PACKAGES, EXTRAS, environment, git_revision, package_version

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One commit: src/a.py, and .venv/ ignored."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for folder in ("src", ".venv"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").touch()
    (tmp_path / ".gitignore").write_text(".venv/\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(tmp_path, *identity, "commit", "--quiet", "--message", "first")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_revision_of_a_checkout(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert git_revision(repository / "src") == commit
    (repository / "src" / "a.py").write_text("changed")
    assert git_revision(repository / "src") == f"{commit}+changes"


def test_package_installed_inside_someones_checkout_is_not_of_its_revision(
    repository: Path,
) -> None:
    assert git_revision(repository / ".venv") is None


def test_no_checkout_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_revision(tmp_path) is None
    assert git_revision(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", "")
    assert git_revision(ROOT) is None


def test_environment_names_every_core_package_and_is_json() -> None:
    found = environment()
    assert set(found["versions"]) == set(CORE_PACKAGES)
    assert None not in found["versions"].values()
    assert found["threads"] == torch.get_num_threads()
    assert json.loads(json.dumps(found)) == found


def test_extras_are_those_of_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, (package, _) in EXTRAS.items():
        assert any(need.startswith(package) for need in project["optional-dependencies"][extra])
    needs = {need.partition(">")[0] for need in project["dependencies"]}
    assert needs <= set(CORE_PACKAGES)


def test_package_that_is_not_there() -> None:
    assert package_version("no-such-package-of-ours") is None
