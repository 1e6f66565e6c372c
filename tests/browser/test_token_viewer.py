"""The token viewer in a real browser: pointer, keys, filters, colours, links, and its limits."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forkpoint.report import build_report
from forkpoint.report.text import visible
from tests.browser.tab import ViewerTab
from tests.report_runs import HOSTILE, hostile_run, make_row, make_run
from tests.stored import make_completion, make_store, random_store, write_dynamics

pytestmark = pytest.mark.browser


def step_rows(step: int) -> list[Any]:
    """Two prompts of three answers: go 0.01, left 1.2, or 0.02, right 0.6 nats."""
    return [
        make_row(
            serial,
            sample,
            step=step,
            tokens=["go", " left", " or", " right" if sample < 2 else " back"],
            ids=[5, 6, 7, 8 if sample < 2 else 9],
            entropies=[0.01, 1.2, 0.02, 0.6],
            logprobs=[-0.01, -0.6931472, -0.02, -0.6],
            selected=[False, True, False, True],
            reward=float(sample == 0),
            advantage=1.5 - sample,
            finish_reason="length" if sample == 2 else "stop",
        )
        for serial in (0, 1)
        for sample in range(3)
    ]


def add_analysis(root: Path) -> None:
    """Answers a b c (0.2, 0.4, 1.1 nats) and a d (0.2, 0.05), scored by three checkpoints: the
    last adds 0.3 to the first answer's first token and takes 0.6 off its third."""
    likely = [[(1, 0.5), (2, 0.25), (99, 0.125)]] * 3
    entropies = ([0.2, 0.4, 1.1], [0.2, 0.05])
    answers = [
        make_completion(
            0, sample, texts=texts, ids=ids, entropies=nats, top=likely[: len(ids)],
            logprobs=[-0.6931472] * len(ids), reward=1.0 - sample,
        )
        for sample, (texts, ids, nats) in enumerate(
            zip((["a", " b", " c"], ["a", " d"]), ([1, 2, 3], [1, 4]), entropies, strict=True)
        )
    ]  # fmt: skip
    make_store(root, answers)
    last = ([0.5, 0.4, 0.5], [0.2, 0.05])
    names = ["base", "step_00010", "step_00020"]
    write_dynamics(root, answers, [entropies, entropies, last], names)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 4 and an analysis."""
    folder = tmp_path_factory.mktemp("viewer")
    run = make_run(folder / "run", rows={step: step_rows(step) for step in (1, 4)})
    add_analysis(run)
    return build_report([run], folder / "report.html")


Open = Callable[..., ViewerTab]


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens pages, and closes them after the test."""
    tabs: list[ViewerTab] = []

    def open_page(*arguments: Any, **settings: Any) -> ViewerTab:
        tabs.append(ViewerTab(browser, *arguments, **settings))
        return tabs[-1]

    yield open_page
    for tab in tabs:
        tab.page.close()


@pytest.fixture
def tab(opened: Open, report: Path) -> ViewerTab:
    return opened(report)


# ---- one token ----------------------------------------------------------------------------------


def test_pointing_at_a_token_shows_what_is_known_of_it(tab: ViewerTab) -> None:
    tab.token(0, 1).hover()
    assert tab.text("#details .token") == "␣left"
    # Entropies 0.01, 0.02, 0.6, 1.2 in equal parts: three quarters of the tokens are below 1.2.
    assert tab.details() == {
        "id": "6",
        "position": "2 of 4",
        "entropy": "1.2 nats",
        "percentile": "75.0",
        "p(chosen)": "0.5",
        "surprisal": "0.693 nats",
        "selected": "yes",
        "advantage": "+1.5",
    }
    assert tab.page.locator("#details .choices").count() == 0  # rollouts know no alternatives
    tab.token(2, 3).hover()
    assert (tab.details()["id"], tab.details()["advantage"]) == ("9", "−0.5")
    assert tab.trouble == []


def test_alternatives_are_bars_as_wide_as_they_are_likely(tab: ViewerTab) -> None:
    tab.page.select_option("#source", "analysis")
    tab.ready()
    tab.token(0, 0).hover()
    # a was chosen with p 0.5, b has 0.25, token 99 (never seen as text) 0.125: 0.125 is left.
    assert tab.texts("#details .choices .word") == ["a", "␣b", "id\u00a099", "all others"]
    assert tab.texts("#details .choices .share") == ["50 %", "25 %", "12 %", "12 %"]
    assert tab.texts("#details .chosen .word") == ["a"]
    full, half, quarter = (
        tab.page.locator(selector).first.bounding_box()["width"]
        for selector in (".choices .bar", ".choices .fill", ".choices li:nth-child(2) .fill")
    )
    assert half / full == pytest.approx(0.5, abs=0.01)
    assert quarter / full == pytest.approx(0.25, abs=0.01)


def test_keys_go_from_token_to_token_and_from_answer_to_answer(tab: ViewerTab) -> None:
    tab.page.focus("#keys")
    tab.press("Tab")  # the first answer's first selected token
    assert tab.details()["id"] == "6"
    for key, token in (
        ("ArrowRight", "7"),
        ("End", "8"),
        ("ArrowRight", "8"),
        ("Shift+ArrowLeft", "6"),
        ("Shift+ArrowLeft", "6"),
        ("Shift+ArrowRight", "8"),
        ("Home", "5"),
        ("ArrowLeft", "5"),
    ):
        tab.press(key)
        assert tab.details()["id"] == token, key
    assert tab.details()["advantage"] == "+1.5"
    tab.press("ArrowRight", "ArrowRight", "ArrowDown")
    assert (tab.details()["id"], tab.details()["advantage"]) == ("7", "+0.5")
    tab.press("ArrowUp")
    assert (tab.details()["id"], tab.details()["advantage"]) == ("7", "+1.5")
    tab.press("Tab", "Tab")
    assert (tab.details()["id"], tab.details()["advantage"]) == ("6", "−0.5")
    # A screen reader hears the active token: the focused list names it.
    active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
    assert tab.page.evaluate(f"{active}.textContent") == "left"
    assert tab.page.evaluate(f"{active}.role") == "option"
    assert tab.trouble == []


# ---- colours ------------------------------------------------------------------------------------


def test_each_way_of_colouring_has_its_classes_and_its_scale(tab: ViewerTab) -> None:
    for name, colours, title in (
        ("surprisal", ["h0", "h3", "h0", "h3"], "Surprisal −ln p of the token, nats"),
        ("selected", ["h0", "h5", "h0", "h5"], "A token that is coloured got a policy gradient"),
        ("advantage", ["p3"] * 4, "Advantage of the answer"),
        ("entropy", ["h0", "h5", "h0", "h3"], "Entropy, nats"),
    ):
        tab.page.locator(f"label:has(#colour-{name})").click()
        assert tab.classes(0) == colours, name
        assert tab.text("#scale p >> nth=0") == title
    assert tab.texts("#scale .edge") == [".1", ".25", ".5", ".75", "1", "1.5", "2", "3"]
    tab.press("5")
    assert [tab.classes(answer)[0] for answer in range(3)] == ["p3", "p2", "b2"]
    assert tab.texts("#scale .edge") == ["−2", "−1", "−.5", "−.01", ".01", ".5", "1", "2"]
    colours = [tab.token(answer, 0).evaluate("e => getComputedStyle(e).backgroundColor")
               for answer in range(3)]  # fmt: skip
    assert len(set(colours)) == 3
    assert tab.page.locator("#colour-change").is_disabled()
    tab.press("4")  # says why not, and changes nothing
    assert "has not scored these tokens" in tab.text("#said")
    assert tab.classes(0) == ["p3"] * 4


def test_change_of_entropy_between_checkpoints(opened: Open, report: Path) -> None:
    tab = opened(report, link="#source=analysis")
    assert tab.page.locator("#checkpoints").is_hidden()
    assert tab.page.locator("#colour-advantage").is_disabled()
    tab.press("4")
    # From the first to the last: +0.3, 0, -0.6 and 0, 0.
    assert (tab.classes(0), tab.classes(1)) == (["p2", "h0", "b3"], ["h0", "h0"])
    assert tab.text("#scale p >> nth=0") == ("Change of entropy from base to step_00020, nats")
    tab.token(0, 2).hover()
    assert tab.details()["change"] == "−0.6 nats"
    assert tab.details()["from, to"] == "1.1, 0.5"
    tab.page.select_option("#to", "1")  # step_00010, which changed nothing
    assert tab.classes(0) == ["h0"] * 3
    tab.page.select_option("#from", "2")
    assert tab.classes(0) == ["b2", "h0", "p3"]
    assert tab.details()["change"] == "+0.6 nats"
    assert {k: tab.link()[k] for k in ("colour", "from", "to")} == {
        "colour": "change", "from": "2", "to": "1",
    }  # fmt: skip


def test_the_line_under_a_token_means_what_the_source_says(opened: Open, report: Path) -> None:
    tab = opened(report, link="#source=analysis")
    # Of 0.05, 0.2, 0.2, 0.4, 1.1 nats only the last is above the 80th percentile, 0.54.
    assert tab.texts(".t.selected") == ["c"]
    assert "is in the top fifth by entropy" in tab.text("#scale")
    assert tab.text("#name-selected") == "top fifth"


# ---- groups -------------------------------------------------------------------------------------


def test_where_an_answer_parts_from_the_one_above(tab: ViewerTab) -> None:
    assert tab.texts(".parting") == [
        "begins like the one above to its end",
        "parts from the one above at token 4",
    ]
    assert tab.texts(".t.parts") == ["back"]
    assert tab.style(".t.parts", "boxShadow") != tab.style(".t.selected", "boxShadow")
    tab.press("f")
    assert tab.texts(".fold") == [f"… {n} tokens as in the answer above" for n in (4, 3)]
    counts = [tab.page.locator("article").nth(i).locator(".t").count() for i in range(3)]
    assert counts == [4, 0, 1]
    assert tab.page.get_attribute("#fold", "aria-pressed") == "true"
    tab.page.locator(".fold").nth(1).click()  # this one only
    tab.ready()
    assert tab.page.locator("article").nth(2).locator(".t").all_inner_texts() == [
        "go", "left", "or", "back",
    ]  # fmt: skip
    assert tab.page.locator(".fold").count() == 1
    tab.press("f")
    assert tab.page.locator(".fold").count() == 0


def test_an_answer_is_compared_with_the_one_that_is_shown_above_it(tab: ViewerTab) -> None:
    tab.page.select_option("#answers", "wrong")
    assert tab.texts(".parting") == ["parts from the one above at token 4"]
    assert tab.page.locator(".marks .away").count() == 1  # the right one is faint


def test_filters_choose_answers_and_sources(tab: ViewerTab) -> None:
    assert tab.verdicts() == ["● right", "○ wrong", "○ wrong, truncated"]
    assert tab.text("#place") == "prompt 1 of 2"
    assert tab.text(".rewards") == "●○○ 1 of 3 right"
    for kind, verdicts in (
        ("right", ["● right"]),
        ("wrong", ["○ wrong", "○ wrong, truncated"]),
        ("truncated", ["○ wrong, truncated"]),
    ):
        tab.page.select_option("#answers", kind)
        assert tab.verdicts() == verdicts
    assert tab.text("#group .id") == "step 4 · p0"
    tab.page.select_option("#source", "step-1")
    tab.ready()
    assert tab.text("#group .id") == "step 1 · p0"
    tab.page.click("#next")
    assert tab.text("#group .id") == "step 1 · p1"
    assert tab.page.locator("#next").is_disabled()
    tab.press("j")  # there is none
    assert tab.text("#place") == "prompt 2 of 2"
    tab.press("k")
    assert tab.text("#group .id") == "step 1 · p0"
    assert tab.page.locator("#previous").is_disabled()
    tab.page.select_option("#source", "analysis")
    tab.page.wait_for_selector("#group .empty")
    assert tab.text("#group") == "No answer of this kind is on the page."
    assert tab.text("#place") == "none"
    tab.page.select_option("#answers", "all")
    assert tab.verdicts() == ["● right", "○ wrong"]
    assert tab.trouble == []


# ---- links --------------------------------------------------------------------------------------

LINK = "#source=step-1&group=1&sample=1&token=3&colour=surprisal&answers=wrong"


def test_a_link_leads_to_its_token_and_view(opened: Open, report: Path) -> None:
    tab = opened(report, link=LINK)
    assert tab.text("#group .id") == "step 1 · p1"
    assert tab.page.locator("#answers").input_value() == "wrong"
    assert tab.page.locator("#colour-surprisal").is_checked()
    assert tab.texts(".t.current") == ["or"]
    assert (tab.details()["id"], tab.details()["advantage"]) == ("7", "+0.5")
    assert tab.page.locator(".t.current").evaluate(
        "e => e.getBoundingClientRect().top > 0 && e.getBoundingClientRect().bottom < innerHeight"
    )
    assert tab.page.evaluate("location.hash") == LINK  # as it came
    # What the reader does then is a link too, and that link leads to the same place.
    tab.page.locator(".t.current").click()
    tab.press("ArrowRight", "1", "f")
    link = tab.link()
    assert link == {
        "source": "step-1", "group": "1", "sample": "1", "token": "4", "colour": "entropy",
        "answers": "wrong", "fold": "1",
    }  # fmt: skip
    other = opened(report, link=tab.page.evaluate("location.hash"))
    assert other.texts(".t.current") == ["right"]
    assert other.verdicts() == tab.verdicts()
    assert tab.trouble == other.trouble == []


def test_a_changed_address_is_followed(tab: ViewerTab) -> None:
    tab.page.evaluate("location.hash = 'source=analysis&group=0&sample=1&token=2&colour=change'")
    tab.page.wait_for_selector("#group .id >> text=analysis")
    assert tab.texts(".t.current") == ["d"]
    assert tab.page.locator("#colour-change").is_checked()
    tab.page.go_back()  # to no hash at all: nothing is asked for, nothing changes
    assert tab.text("#group .id") == "analysis · p0"


def test_the_address_of_a_section_is_left_alone(opened: Open, report: Path) -> None:
    tab = opened(report, link="#provenance")
    tab.page.wait_for_timeout(300)
    assert tab.page.evaluate("location.hash") == "#provenance"
    assert tab.text("#group .id") == "step 4 · p0"


@pytest.mark.parametrize(
    "link",
    [
        "#source=step-4&group=77&sample=9&token=3&colour=entropy",
        "#source=nowhere&group=x&sample=-1&token=1e9&colour=pink&answers=odd&from=a&to=9",
        "#source=step-4&group=0&sample=0&token=999999&colour=change",
        "#=&&a==b",
        "#source=<img src=x onerror=alert(1)>&group=%00%ff",
    ],
)
def test_a_link_to_what_is_not_there_shows_the_page(opened: Open, report: Path, link: str) -> None:
    tab = opened(report, link=link)
    assert tab.text("#group .id") == "step 4 · p0"
    assert tab.classes(0) == ["h0", "h5", "h0", "h3"]
    assert tab.trouble == []


def test_copying_a_link(opened: Open, report: Path) -> None:
    tab = opened(report)
    tab.page.evaluate(
        "Object.defineProperty(navigator, 'clipboard', {value: "
        "{writeText: async (text) => { window.copied = text }}})"
    )
    tab.token(1, 2).click()
    tab.press("c")
    tab.page.wait_for_selector("#said >> text=link copied")
    fields = "source=step-4&group=0&sample=1&token=3&colour=entropy"
    assert tab.page.evaluate("window.copied") == f"{tab.address}#{fields}"
    tab.page.evaluate(
        "() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')) }"
    )
    tab.page.click("#copy")
    tab.page.wait_for_selector("#said >> text=the link is in the address bar")
    assert tab.trouble == []


# ---- keys of the page ---------------------------------------------------------------------------


def test_help_opens_and_closes(tab: ViewerTab) -> None:
    tab.press("?")
    assert tab.page.locator("#help").is_visible()
    assert "next and previous prompt" in tab.text("#help")
    tab.press("j")  # does nothing below the help
    tab.press("Escape")
    assert tab.page.locator("#help").is_hidden()
    assert tab.text("#place") == "prompt 1 of 2"
    tab.press("j")
    assert tab.text("#place") == "prompt 2 of 2"


def test_keys_are_for_the_viewer_only(tab: ViewerTab) -> None:
    tab.scroll_to("header")
    section = tab.page.locator("#completions").bounding_box()
    assert section["y"] > 900  # below the window
    tab.press("j")
    assert tab.text("#place") == "prompt 1 of 2"
    tab.page.focus("#source")
    tab.press("Control+j", "j")  # a select takes its letters itself
    assert tab.text("#place") == "prompt 1 of 2"


# ---- hostile text -------------------------------------------------------------------------------


def test_hostile_text_is_shown_and_does_not_run(opened: Open, tmp_path: Path) -> None:
    run = hostile_run(tmp_path / "<img src=x onerror=window.hacked=4>")
    answers = [
        make_completion(
            number, 0, texts=[text, text], ids=[number, number], prompt=text, prompt_id=text,
            top=[[(99 - number, 0.5)]] * 2,
        )
        for number, text in enumerate(HOSTILE)
    ]  # fmt: skip
    make_store(run, answers)
    tab = opened(build_report([run], tmp_path / "report.html"))
    for source in ("step-1", "analysis"):
        tab.page.select_option("#source", source)
        tab.ready()
        seen = []
        for number in range(len(HOSTILE)):
            seen.append(tab.page.locator("#group .text").text_content())
            for token in tab.page.locator(".t").all()[:2]:
                token.hover()
                assert tab.page.locator("#details .token").text_content()
            if number + 1 < len(HOSTILE):
                tab.page.click("#next")
        assert seen == [visible(text) for text in HOSTILE]
    tab.press("f", "c", "1", "2", "3")
    assert tab.page.evaluate("window.hacked") is None
    assert (
        tab.page.locator("#completions img, #completions script, #completions style").count() == 0
    )
    assert tab.page.locator("img").count() == 0
    assert tab.page.locator("script").count() == 2
    assert tab.trouble == []
    assert tab.requests == [tab.address]


def test_text_from_right_to_left_keeps_to_itself(opened: Open, tmp_path: Path) -> None:
    """Arabic and Hebrew read from right to left, and move no token around them; marks are signs."""
    tokens = ["one", " \u0645", "\u0631", "\u062d", " ", "\u0628", ".", " two", " \u202e"]
    tokens += [" \u05d0", " 3", " three"]
    rows = [make_row(tokens=tokens, entropies=[1.0] * 12)]
    run = make_run(tmp_path / "run", rows={1: rows})
    tab = opened(build_report([run], tmp_path / "report.html"))
    left = [tab.token(0, i).bounding_box()["x"] for i in range(12)]
    assert left[1:4] == sorted(left[1:4], reverse=True)  # the letters of a word
    assert left[5] < left[3]  # and the next word of it
    others = [left[i] for i in (0, 5, 6, 7, 8, 9, 10, 11)]
    assert others == sorted(others)
    assert tab.token(0, 8).inner_text() == "⟨U+202E⟩"
    assert tab.page.locator("#group .piece bdi").all_inner_texts() == [
        "\u0645\u0631\u062d \u0628", "\u05d0",
    ]  # fmt: skip
    tab.token(0, 9).hover()
    assert tab.page.locator("#details .token").evaluate("e => e.tagName + e.dir") == "BDIauto"


# ---- sizes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was only analysed: 500 000 tokens in 50 groups of 5 answers of 2000 tokens."""
    folder = tmp_path_factory.mktemp("large")
    random_store(folder / "run", groups=50, size=5, length=2000)
    return build_report([folder / "run"], folder / "report.html")


def test_500_000_tokens_take_less_than_10_megabytes(large: Path) -> None:
    assert large.stat().st_size < 10_000_000
    text = " ".join(large.read_text(encoding="utf-8").split())
    assert "Analysis: all 250 completions, 500,000 tokens." in text
    header = json.loads(re.findall(r'id="data">(.*?)</script>', text)[0])
    assert (
        sum(one[1] for g in header["sources"][0]["groups"] for one in g["completions"]) == 500_000
    )


def test_only_tokens_near_the_window_are_elements(opened: Open, large: Path) -> None:
    tab = opened(large)

    def elements() -> int:
        tab.page.wait_for_timeout(300)
        return tab.page.evaluate("document.querySelectorAll('*').length")

    most = elements()
    assert tab.page.locator(".t").count() > 100
    height = tab.page.evaluate("document.documentElement.scrollHeight")
    for part in (1, 2, 3, 4):
        tab.page.evaluate(
            f"window.scrollTo({{top: {part * height // 4 - 900}, behavior: 'instant'}})"
        )
        most = max(most, elements())
        # What is on the screen is coloured: the pieces there are made of tokens.
        assert tab.page.evaluate(
            "[...document.querySelectorAll('.piece')].filter((e) => {"
            "const r = e.getBoundingClientRect(); return r.bottom > 0 && r.top < innerHeight;"
            "}).every((e) => e.querySelector('.t'))"
        )
    assert most < 6000  # of the 10 000 tokens of the group, and of 500 000 in all
    # Tokens that come and go move nothing, and their text can be found when they are away.
    assert tab.page.evaluate("document.documentElement.scrollHeight") == height
    assert len(tab.page.locator(".tokens-text").first.text_content().split()) == 2000
    for _ in range(3):
        tab.press("j")
    assert tab.text("#place") == "prompt 4 of 50"
    assert elements() < 6000
    assert tab.trouble == []


def test_a_short_group_is_elements_at_once(opened: Open, tmp_path: Path) -> None:
    random_store(tmp_path / "run", groups=2, size=8, length=300)
    tab = opened(build_report([tmp_path / "run"], tmp_path / "report.html"))
    assert tab.page.locator(".t").count() == 8 * 300  # the page is coloured to its end
    tab.press("j")
    assert tab.page.locator(".t").count() == 8 * 300


def test_a_link_reaches_a_token_far_down(opened: Open, large: Path) -> None:
    tab = opened(large, link="#source=analysis&group=7&sample=4&token=1990")
    assert tab.details()["position"] == "1990 of 2000"
    assert tab.page.locator(".t.current").evaluate(
        "e => e.getBoundingClientRect().top > 0 && e.getBoundingClientRect().bottom < innerHeight"
    )
    tab.page.locator(".t.current").click()
    tab.press("Home")  # 2000 tokens away, where there were no elements; the pointer stays
    assert tab.details()["position"] == "1 of 2000"
    assert tab.page.locator(".t.current").evaluate(
        "e => e.getBoundingClientRect().top >= 0 && e.getBoundingClientRect().top < innerHeight"
    )


def test_what_does_not_fit_is_sampled_and_counted(opened: Open, tmp_path: Path) -> None:
    random_store(tmp_path / "run", groups=40, size=2, length=50)
    page = build_report([tmp_path / "run"], tmp_path / "report.html", tokens=1000)
    tab = opened(page)
    # 1000 * 17 bytes; a group takes 100 * 16 + 2 * 80 + the prompt's: "What is 7 and 7? " * 8.
    groups = 17_000 // (1600 + 160 + 136)
    assert tab.text("#place") == f"prompt 1 of {groups}"
    assert (
        f"{2 * groups} of 80 completions, {100 * groups} of 4,000 tokens: whole groups, drawn at "
        "random. The rest is in analysis/."
    ) in tab.text("#completions .margin")


def test_no_tokens_at_all(opened: Open, tmp_path: Path) -> None:
    make_store(tmp_path / "run", [make_completion(texts=[], top=[])])
    tab = opened(build_report([tmp_path / "run"], tmp_path / "report.html"))
    assert "all 1 completions, 0 tokens" in tab.text("#completions .margin")
    assert tab.text(".tokens-text") == "no tokens"
    tab.page.focus("#keys")
    tab.press("Tab", "ArrowRight", "End", "1", "f", "j")
    assert tab.trouble == []


# ---- looks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_the_viewer_fits_the_window(opened: Open, report: Path, width: int, scheme: str) -> None:
    link = "#source=analysis&group=0&sample=0&token=3&colour=change"
    tab = opened(report, width, link=link, color_scheme=scheme)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == width
    ink, paper = (tab.style("body", name) for name in ("color", "backgroundColor"))
    dark = [sum(map(int, re.findall(r"\d+", one))) for one in (ink, paper)]
    assert (dark[0] > dark[1]) == (scheme == "dark")
    assert tab.style(".t.b3", "backgroundColor") != "rgba(0, 0, 0, 0)"
    panel, group = (tab.page.locator(s).bounding_box() for s in ("aside", "#group"))
    if width == 390:  # above the text, and not more than half of the window
        assert panel["y"] + panel["height"] <= group["y"] + 1 or panel["y"] >= 0
        assert panel["height"] <= 450
    else:
        assert panel["x"] >= group["x"] + group["width"]
    assert tab.trouble == []
    assert len(tab.requests) == 1
