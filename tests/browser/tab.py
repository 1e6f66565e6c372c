"""A page in a real browser, with what it complains about and asks for."""

from pathlib import Path
from typing import Any


class Tab:
    """A page that was opened from its file, and all it complained about or asked for."""

    def __init__(
        self, browser: Any, path: Path, width: int = 1440, *, link: str = "", **settings: Any
    ) -> None:
        viewport = {"width": width, "height": 900}
        self.page = browser.new_page(viewport=viewport, **settings)
        self.page.set_default_timeout(10_000)
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: self.trouble.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.address = path.as_uri()
        self.page.goto(self.address + link)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()

    def scroll_to(self, selector: str) -> None:
        self.page.locator(selector).evaluate("e => e.scrollIntoView({behavior: 'instant'})")

    def style(self, selector: str, name: str) -> str:
        """A computed style of the first element."""
        return self.page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")


class ViewerTab(Tab):
    """A page whose token viewer is ready."""

    def __init__(self, *arguments: Any, link: str = "", **settings: Any) -> None:
        super().__init__(*arguments, link=link, **settings)
        if "=" not in link:  # else the link leads there
            self.scroll_to("#completions .browser")
        self.ready()

    def ready(self) -> None:
        """Once the source is unpacked and tokens are elements; or there are none."""
        something = ":is(.t, .rest, .empty)"
        self.page.wait_for_selector(
            f"#completions:not([aria-busy]) #group {something}", state="attached"
        )

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def token(self, answer: int, place: int) -> Any:
        """The place-th token of the answer-th answer on the page, both from 0."""
        return self.page.locator("article").nth(answer).locator(".t").nth(place)

    def details(self) -> dict[str, str]:
        return dict(zip(self.texts("#details dt"), self.texts("#details dd"), strict=True))

    def verdicts(self) -> list[str]:
        return self.texts(".verdict b")

    def classes(self, answer: int) -> list[str]:
        """The colour class of each token of an answer."""
        tokens = self.page.locator("article").nth(answer).locator(".t").all()
        return [token.get_attribute("class").split()[1] for token in tokens]

    def link(self) -> dict[str, str]:
        """The fields of the address, once it has followed."""
        self.page.wait_for_timeout(300)
        return self.page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
