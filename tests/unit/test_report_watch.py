"""``forkpoint report --watch``: the page follows a run that grows, and stops with it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forkpoint.cli.report import report
from forkpoint.errors import RunError
from forkpoint.report import watch as watching
from forkpoint.report.watch import is_over, watch
from tests.report_page import Page
from tests.report_runs import make_run

Event = Callable[[], None]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How many seconds each page that was built waits before it reloads."""
    made: list[Any] = []
    build = watching.build_report

    def counted(runs: Any, out: Path, **settings: Any) -> Path:
        made.append(settings["reload_s"])
        return build(runs, out, **settings)

    monkeypatch.setattr(watching, "build_report", counted)
    return made


def after_looks(monkeypatch: pytest.MonkeyPatch, *events: Event) -> Callable[[], bool]:
    """Let something happen after each look at the files; wish to stop after the last of it."""
    waiting = list(events)
    clock = [0.0]

    def sleep(seconds: float) -> None:
        clock[0] += 1000.0
        waiting.pop(0)()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    monkeypatch.setattr(watching.time, "monotonic", lambda: clock[0])
    return lambda: not waiting


def add_step(root: Path, step: int) -> None:
    with (root / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "reward/mean": step / 8}) + "\n")


def made_in(page: Page) -> str:
    """How many steps a page says were made."""
    found = re.search(r": (\d(?: of \d)?) steps ", page.words())
    assert found
    return found[1]


def run_of_three_steps(root: Path) -> Path:
    return make_run(root, config={"training": {"steps": 3}})


def test_the_page_is_built_when_files_change_until_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[Any]
) -> None:
    root, out, noted = run_of_three_steps(tmp_path / "run"), tmp_path / "report.html", []
    pages: list[Page] = []

    def look() -> None:
        pages.append(Page(out))

    def second_step() -> None:
        look()
        add_step(root, 2)

    def third_step() -> None:
        look()
        add_step(root, 3)

    events = (look, second_step, third_step, lambda: pytest.fail("goes on after the last step"))
    stop = after_looks(monkeypatch, *events)
    watch([root], out, every=4.0, note=noted.append, should_stop=stop)
    assert builds == [4.0, 4.0, None]  # not for the look at which nothing had changed
    assert [made_in(page) for page in pages] == ["1 of 3", "1 of 3", "2 of 3"]
    assert made_in(Page(out)) == "3"
    assert noted == []


def test_only_a_watched_page_reloads_and_only_its_own_script_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[Any]
) -> None:
    root, out, sources = run_of_three_steps(tmp_path / "run"), tmp_path / "report.html", []
    stop = after_looks(monkeypatch, lambda: sources.append(out.read_text()))
    watch([root], out, every=2.5, note=pytest.fail, should_stop=stop)
    assert builds == [2.5, None]
    assert '<body data-reload-s="2.5">' in sources[0]
    assert "location.reload()" in sources[0]
    assert "loaded anew as the run goes on" in sources[0]
    for word in ("reload", "loaded anew"):
        assert word not in out.read_text()


def test_a_run_that_has_just_begun_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[Any]
) -> None:
    root, out, noted = run_of_three_steps(tmp_path / "run"), tmp_path / "report.html", []
    lines = (root / "metrics.jsonl").read_text()
    (root / "metrics.jsonl").unlink()

    def first_step() -> None:
        assert not out.exists()
        (root / "metrics.jsonl").write_text(lines)

    stop = after_looks(monkeypatch, first_step, lambda: None)
    watch([root], out, every=1.0, note=noted.append, should_stop=stop)
    assert len(noted) == 1
    assert "nothing to report" in noted[0]
    assert made_in(Page(out)) == "1 of 3"


def test_what_is_no_run_is_refused_at_once(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RunError):
            watch([root], tmp_path / "o.html", every=1, note=pytest.fail, should_stop=lambda: False)


def test_neither_checkpoints_nor_trackers_nor_the_page_itself_are_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, builds: list[Any]
) -> None:
    root = run_of_three_steps(tmp_path / "run")

    def write(name: str) -> Event:
        def written() -> None:
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text("{}")

        return written

    names = ("checkpoints/state.json", "tracking/wandb.json", "report.html", ".partial")
    stop = after_looks(monkeypatch, *map(write, names), lambda: None)
    watch([root], root / "report.html", every=1.0, note=pytest.fail, should_stop=stop)
    assert builds == [1.0, None]


def test_a_run_is_over_with_its_last_step(tmp_path: Path) -> None:
    root = run_of_three_steps(tmp_path / "run")
    assert not is_over(root)
    add_step(root, 3)
    assert is_over(root)
    (root / "config.json").unlink()
    assert not is_over(root)
    assert not is_over(tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = run_of_three_steps(tmp_path / "run"), tmp_path / "report.html"
    add_step(root, 3)
    assert report(root, out=out, watch=True) == 0
    assert capsys.readouterr().out.replace("\n", "").endswith(str(out))
    assert made_in(Page(out)) == "3"
    for settings, message in (
        ({"every": 3.0}, "--every is read together with --watch only"),
        ({"every": 0.0, "watch": True}, "--every 0: seconds must be above 0"),
    ):
        with pytest.raises(RunError, match=message):
            report(root, out=out, **settings)
