"""The report in a real browser: no request, no console message, tables, anchors, hostile text."""

from pathlib import Path
from typing import Any

import pytest

from forkpoint.report import build_report
from forkpoint.runs.results import write_result
from tests.ablation_result import ABLATION
from tests.analysis_runs import PATTERN, WORDS, whole_analysis, write_analysis
from tests.browser.tab import Tab
from tests.report_runs import HOSTILE, hostile_run, make_row, make_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained and analysed in every way."""
    folder = tmp_path_factory.mktemp("report")
    rows = {step: [make_row(step=step), make_row(0, 1, step=step)] for step in (1, 4)}
    metrics = [{"step": s, "reward/mean": s / 8, "work/flops": 1e12} for s in range(1, 5)]
    run = whole_analysis(make_run(folder / "run", rows=rows, metrics=metrics))
    return build_report([run], folder / "report.html")


@pytest.fixture(scope="module")
def long_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 words a table: w00 has the highest mean; counts go up and down."""
    folder = tmp_path_factory.mktemp("long")
    words = [(f"w{i:02}", 101 + (i * 7) % 80, 8 - i / 10, 9.0) for i in range(80)]
    store = [[["a", "w00", "b"], ["c", "w00"], ["w00", "d"], ["e", "w01"]]]
    run = write_analysis(folder / "run", PATTERN, words=words, store=store)
    return build_report([run], folder / "report.html")


# ---- the whole page -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1100, 720, 390])
def test_a_page_is_silent_asks_for_nothing_and_does_not_scroll_sideways(
    browser: Any, report: Path, width: int, scheme: str
) -> None:
    tab = Tab(browser, report, width, color_scheme=scheme)
    assert tab.trouble == []
    assert tab.requests == [tab.address]
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    paper = tab.style("body", "backgroundColor")  # the policy let the style in
    assert paper == {"light": "rgb(255, 254, 250)", "dark": "rgb(22, 22, 20)"}[scheme]
    tab.page.close()


@pytest.mark.parametrize("width", [1440, 1100, 720, 390])
def test_the_page_of_an_ablation_fits_its_window(browser: Any, tmp_path: Path, width: int) -> None:
    write_result(tmp_path, ABLATION)
    tab = Tab(browser, build_report([tmp_path], tmp_path / "report.html"), width)
    assert tab.trouble == []
    assert tab.requests == [tab.address]
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    tab.page.locator("#ablation svg.chart").first.get_by_role("img").first.hover()
    assert tab.text("#told") == "top20, seed 0: +12.5"
    for chart in tab.page.locator("#ablation svg.chart").all():
        for text in chart.locator("text").all():
            box = text.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
    tab.page.close()


def test_the_policy_stops_what_would_slip_through(
    browser: Any, report: Path, tmp_path: Path
) -> None:
    """The second line of defence works on its own: a script or an image put in by force."""
    attack = "<script>window.hacked = 1</script><img src='https://example.invalid/x.png'>"
    attacked = tmp_path / "attacked.html"
    text = report.read_text(encoding="utf-8")
    attacked.write_text(text.replace("<main>", attack + "<main>"), encoding="utf-8")
    tab = Tab(browser, attacked)
    assert tab.page.evaluate("window.hacked") is None
    assert len([line for line in tab.trouble if "Content Security Policy" in line]) == 2
    tab.page.close()


def test_hostile_text_is_shown_and_does_not_run(browser: Any, tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "<img src=x onerror=window.hacked=4>")
    words = [(text, 200 - i, 1.0 - i / 10, 2.0) for i, text in enumerate(HOSTILE)]
    write_analysis(run, PATTERN, words=words, store=[[list(HOSTILE)]])
    tab = Tab(browser, build_report([run], tmp_path / "report.html"))
    assert "<script>window.hacked␣=␣1</script>" in tab.text("#forks-highest")
    assert "onerror=window.hacked=3" in tab.text("#forks-highest")
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("img").count() == 0
    assert tab.trouble == []
    assert tab.requests == [tab.address]
    tab.page.close()


# ---- a run in progress --------------------------------------------------------------------------


def test_a_watched_page_loads_itself_anew_once_nobody_touches_it(
    browser: Any, tmp_path: Path
) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "report.html"
    tab = Tab(browser, build_report([run], out, reload_s=1.0))
    assert "loaded anew as the run goes on" in tab.text(".kicker")
    for _ in range(6):  # for longer than it waits
        tab.page.wait_for_timeout(300)
        tab.page.keyboard.press("Shift")
    assert tab.requests == [tab.address]
    build_report([run], out)
    tab.page.locator(".kicker", has_text="anew").wait_for(state="detached")
    assert tab.requests == [tab.address] * 2
    tab.page.wait_for_timeout(1500)  # what is there now stays
    assert tab.requests == [tab.address] * 2
    assert tab.trouble == []
    tab.page.close()


# ---- addresses ----------------------------------------------------------------------------------


def test_every_section_is_reached_by_its_link(browser: Any, report: Path) -> None:
    tab = Tab(browser, report, reduced_motion="reduce")
    links = tab.page.locator(".contents a")
    anchors = [link.get_attribute("href") for link in links.all()]
    assert {"#training", "#analysis", "#forks", "#dynamics", "#provenance"} <= set(anchors)
    for anchor in anchors[1:]:
        links.filter(has=tab.page.locator(f"xpath=self::*[@href='{anchor}']")).click()
        assert tab.page.evaluate("location.hash") == anchor
        box = tab.page.locator(anchor).bounding_box()
        bar = tab.page.locator(".contents").bounding_box()
        bottom = tab.page.evaluate("innerHeight + scrollY >= document.body.scrollHeight - 1")
        # Its heading is under the bar that stays at the top, unless the page ends before that.
        assert bar["y"] == 0
        assert 0 <= box["y"] <= 60 or bottom
    tab.page.close()


def test_an_address_from_elsewhere_opens_its_section(browser: Any, report: Path) -> None:
    tab = Tab(browser, report, link="#branching", reduced_motion="reduce")
    tab.page.wait_for_function("scrollY > 0")
    tab.page.wait_for_selector(".contents a[aria-current]")
    assert tab.page.locator("#h-branching").is_visible()
    assert tab.texts(".contents [aria-current]") == ["Branching"]
    assert tab.page.evaluate("location.hash") == "#branching"
    tab.page.close()


@pytest.mark.parametrize(("width", "visible"), [(1440, True), (1100, True), (1099, False)])
def test_the_contents_are_there_where_there_is_room(
    browser: Any, report: Path, width: int, visible: bool
) -> None:
    tab = Tab(browser, report, width)
    assert tab.page.locator(".contents").is_visible() is visible
    if visible:
        last = tab.page.locator(".contents li").last.bounding_box()
        assert last["x"] + last["width"] <= width
    tab.page.close()


# ---- tables -------------------------------------------------------------------------------------


def shown_rows(tab: Tab, column: int) -> list[str]:
    """The visible cells of a column of the table of highest entropies."""
    cells = tab.page.locator(f"#forks-highest tbody tr > :nth-child({column})").all()
    return [cell.inner_text() for cell in cells if cell.is_visible()]


def test_a_click_on_a_column_sorts_by_it(browser: Any, long_report: Path) -> None:
    tab = Tab(browser, long_report)
    counts = sorted((101 + (i * 7) % 80 for i in range(40)), reverse=True)
    header = tab.page.locator("#forks-highest thead th")
    assert shown_rows(tab, 1) == [f"w{i:02}" for i in range(16)]
    assert header.nth(2).get_attribute("aria-sort") == "descending"
    header.nth(1).get_by_role("button").click()
    assert shown_rows(tab, 2) == [str(c) for c in counts[:16]]
    assert [h.get_attribute("aria-sort") for h in header.all()] == [None, "descending", None, None]
    tab.page.keyboard.press("Enter")  # the button has the focus
    assert shown_rows(tab, 2) == [str(c) for c in counts[::-1][:16]]
    header.nth(0).get_by_role("button").click()
    assert shown_rows(tab, 1) == [f"w{i:02}" for i in range(16)]
    header.nth(0).get_by_role("button").click()
    assert shown_rows(tab, 1) == [f"w{i:02}" for i in range(39, 23, -1)]
    assert tab.trouble == []
    tab.page.close()


def test_a_long_table_unfolds_and_folds(browser: Any, long_report: Path) -> None:
    tab = Tab(browser, long_report)
    button = tab.page.locator("#forks-highest + .show-all")
    assert button.inner_text() == "show all 40"
    button.click()
    assert shown_rows(tab, 1) == [f"w{i:02}" for i in range(40)]
    assert (button.inner_text(), button.get_attribute("aria-expanded")) == ("show 16", "true")
    button.click()
    assert len(shown_rows(tab, 1)) == 16
    tab.page.close()


def test_short_tables_have_nothing_to_unfold(browser: Any, report: Path) -> None:
    tab = Tab(browser, report)
    assert tab.page.locator("#forks .show-all").count() == 0
    assert tab.page.locator("#forks-highest tbody tr").count() == len(WORDS) // 2
    tab.page.close()


def test_a_click_on_a_context_shows_the_others(browser: Any, long_report: Path) -> None:
    tab = Tab(browser, long_report)
    cell = tab.page.locator("#forks-highest td.context").nth(1)  # the first one is the header's
    lines = [line for line in cell.locator(".kwic").all() if line.is_visible()]
    assert [line.inner_text().replace("\n", "") for line in lines] == ["aw00b"]
    cell.locator("summary").click()
    lines = [line for line in cell.locator(".kwic").all() if line.is_visible()]
    assert [line.inner_text().replace("\n", "") for line in lines] == ["aw00b", "cw00", "w00d"]
    # The words stand under each other.
    edges = {line.locator("b").bounding_box()["x"] for line in lines}
    assert max(edges) - min(edges) < 1
    assert tab.page.locator("#forks-highest td.context").nth(2).locator("details").count() == 0
    tab.page.close()


@pytest.mark.parametrize("width", [1440, 390])
def test_words_of_a_cloud_do_not_overlap_in_the_browser(
    browser: Any, long_report: Path, width: int
) -> None:
    tab = Tab(browser, long_report, width)
    boxes = [
        word.bounding_box() for word in tab.page.locator("svg.cloud").first.locator("text").all()
    ]
    assert len(boxes) == 40
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            beside = a["x"] + a["width"] <= b["x"] + 0.5 or b["x"] + b["width"] <= a["x"] + 0.5
            # A box is as high as its font's line; letters fill some three quarters of it.
            gap = abs(a["y"] + a["height"] / 2 - b["y"] - b["height"] / 2)
            assert beside or gap >= 0.75 * (a["height"] + b["height"]) / 2
    tab.page.close()


# ---- charts -------------------------------------------------------------------------------------


def test_a_mark_says_its_value_under_the_pointer_and_by_the_arrow_keys(
    browser: Any, report: Path
) -> None:
    tab = Tab(browser, report)
    chart = tab.page.locator("#training svg.chart").first
    mark = chart.get_by_role("img", name="run, step 2: 0.25")
    mark.hover()
    assert tab.text("#told") == "run, step 2: 0.25"
    tab.page.mouse.move(0, 0)
    assert tab.page.locator("#told").is_hidden()
    chart.focus()
    tab.page.keyboard.press("ArrowRight")
    assert tab.text("#told") == "run, step 1: 0.125"
    tab.page.keyboard.press("ArrowRight")
    assert tab.text("#told") == "run, step 2: 0.25"
    tab.page.keyboard.press("ArrowLeft")
    assert tab.text("#told") == "run, step 1: 0.125"
    tab.page.keyboard.press("Escape")
    assert tab.page.locator("#told").is_hidden()
    tab.page.close()


def test_every_colour_of_a_chart_is_known_to_the_page(browser: Any, report: Path) -> None:
    """A variable that the page lacks would be drawn black, or not at all."""
    tab = Tab(browser, report)
    unknown = tab.page.evaluate(
        """() => {
          const style = getComputedStyle(document.body);
          return [...document.querySelectorAll("svg.chart *")]
          .flatMap((e) => [e.getAttribute("fill"), e.getAttribute("stroke")])
          .filter((paint) => paint?.startsWith("var("))
          .filter((paint) => !style.getPropertyValue(paint.slice(4, -1)));
        }"""
    )
    assert unknown == []
    tab.page.close()


@pytest.mark.parametrize("width", [1440, 390])
def test_many_answers_to_a_prompt_stay_on_the_page(
    browser: Any, tmp_path: Path, width: int
) -> None:
    rows = [make_row(0, sample, reward=float(sample % 2)) for sample in range(512)]
    path = build_report([make_run(tmp_path / "run", rows={1: rows})], tmp_path / "report.html")
    tab = Tab(browser, path, width)
    tab.scroll_to("#completions")
    tab.page.wait_for_selector(".rewards .marks span")
    assert tab.page.locator(".rewards .marks span").count() == 512
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    strip, column = (tab.page.locator(name).first.bounding_box() for name in (".rewards", "#group"))
    assert strip["x"] + strip["width"] <= column["x"] + column["width"] + 1
    tab.page.close()
