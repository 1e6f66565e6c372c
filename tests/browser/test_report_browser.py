"""The report in a real browser: no request, no console message, keyboard, filter, hostile text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkpoint.report import build_report
from forkpoint.report.text import visible
from tests.report_runs import HOSTILE, hostile_run, make_row, make_run

pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the browser tests need playwright: pip install playwright"
    )
    if not CHROMIUM.exists():
        pytest.skip(f"the browser tests need {CHROMIUM}: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


class Tab:
    """A page that was opened from its file, and all it complained about or asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1440) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: self.trouble.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.address = path.as_uri()
        self.page.goto(self.address)

    def details(self) -> dict[str, str]:
        names = self.page.locator("#details dt").all_inner_texts()
        return dict(zip(names, self.page.locator("#details dd").all_inner_texts(), strict=True))

    def verdicts(self) -> list[str]:
        return self.page.locator(".verdict b").all_inner_texts()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    rows = {
        step: [
            make_row(
                serial,
                sample,
                step=step,
                tokens=["go", "left", "or", "right"],
                ids=[5, 6, 7, 8],
                entropies=[0.01, 1.2, 0.02, 0.6],
                logprobs=[-0.01, -0.6931472, -0.02, -0.5],
                selected=[False, True, False, True],
                reward=float(sample == 0),
                advantage=1.5 - sample,
                finish_reason="length" if sample == 2 else "stop",
            )
            for serial in (0, 1)
            for sample in range(3)
        ]
        for step in (1, 4)
    }
    return build_report([make_run(tmp_path / "run", rows=rows)], tmp_path / "report.html")


@pytest.mark.parametrize("width", [1440, 390])
def test_a_page_is_silent_and_asks_for_nothing(browser: Any, report: Path, width: int) -> None:
    tab = Tab(browser, report, width)
    assert tab.trouble == []
    assert tab.requests == [tab.address]
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    colours = [
        tab.page.locator(".t").nth(i).evaluate("e => getComputedStyle(e).backgroundColor")
        for i in range(2)
    ]
    assert colours[0] == "rgba(0, 0, 0, 0)"  # 0.01 nats
    assert colours[1] != colours[0]  # the policy let the style in


def test_the_filters_choose_answers(browser: Any, report: Path) -> None:
    tab = Tab(browser, report)
    assert tab.verdicts() == ["● right", "○ wrong", "○ wrong, truncated"]
    assert tab.page.locator("#place").inner_text() == "prompt 1 of 4"
    for kind, verdicts in (
        ("right", ["● right"]),
        ("wrong", ["○ wrong", "○ wrong, truncated"]),
        ("truncated", ["○ wrong, truncated"]),
    ):
        tab.page.select_option("#kind", kind)
        assert tab.verdicts() == verdicts
    tab.page.select_option("#step", "1")
    assert tab.page.locator("#place").inner_text() == "prompt 1 of 2"
    assert tab.page.locator("#group .id").inner_text() == "step 1 · p0"
    tab.page.click("#next")
    assert tab.page.locator("#group .id").inner_text() == "step 1 · p1"
    assert tab.page.locator("#next").is_disabled()
    tab.page.click("#previous")
    assert tab.page.locator("#group .id").inner_text() == "step 1 · p0"


def test_hover_and_keyboard_show_the_token(browser: Any, report: Path) -> None:
    tab = Tab(browser, report)
    tokens = tab.page.locator("article").first.locator(".t")
    tokens.nth(1).hover()
    # Entropies 0.01, 1.2, 0.02, 0.6 in equal parts: three quarters of the tokens are below 1.2.
    assert tab.details() == {
        "id": "6",
        "position": "2 of 4",
        "entropy": "1.2 nats",
        "percentile in step": "75.0",
        "p(chosen)": "0.5",
        "selected": "yes",
        "advantage": "+1.5",
    }
    tab.page.focus("#next")
    tab.page.keyboard.press("Tab")  # the first answer's first selected token
    assert tab.details()["id"] == "6"
    for key, token in (
        ("ArrowRight", "7"),
        ("End", "8"),
        ("Shift+ArrowLeft", "6"),
        ("ArrowLeft", "5"),
        ("ArrowLeft", "5"),
    ):
        tab.page.keyboard.press(key)
        assert tab.details()["id"] == token
    tab.page.keyboard.press("Tab")
    assert tab.details()["advantage"] == "+0.5"  # the second answer
    assert tab.trouble == []


def test_hostile_text_is_shown_and_does_not_run(browser: Any, tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "<img src=x onerror=window.hacked=4>")
    tab = Tab(browser, build_report([run], tmp_path / "report.html", completions=1000))
    seen = []
    for _ in HOSTILE:
        seen.append(tab.page.locator("#group .text").text_content())
        for token in tab.page.locator(".t").all()[:2]:
            token.hover()
            assert tab.page.locator("#details .token").text_content()
        if tab.page.locator("#next").is_enabled():
            tab.page.click("#next")
    assert seen == [visible(text) for text in HOSTILE]
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("img").count() == 0
    assert tab.page.locator("script").count() == 2
    assert tab.trouble == []
    assert tab.requests == [tab.address]


def test_the_policy_stops_what_would_slip_through(browser: Any, report: Path) -> None:
    """The second line of defence works on its own: a script or an image put in by force."""
    text = report.read_text(encoding="utf-8")
    attack = "<script>window.hacked = 1</script><img src='https://example.invalid/x.png'>"
    report.write_text(text.replace("<main>", attack + "<main>"), encoding="utf-8")
    tab = Tab(browser, report)
    assert tab.page.evaluate("window.hacked") is None
    assert len([line for line in tab.trouble if "Content Security Policy" in line]) == 2
