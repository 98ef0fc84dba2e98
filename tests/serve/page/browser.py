"""Headless Chromium on a page of the service, with a record of everything that went wrong."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-background-networking",
)
NO_WEBGL = ("--disable-webgl", "--disable-webgl2", "--disable-3d-apis")
DONE_MS = 60_000


@dataclass
class OpenPage:
    """A page of the service in a browser."""

    page: Page
    url: str
    #: Errors of the console, uncaught exceptions and violations of the security policy.
    errors: list[str] = field(default_factory=list)

    def record(self, message: ConsoleMessage) -> None:
        """Record a message of the console that is an error."""
        if message.type == "error":
            self.errors.append(message.text)

    def forecast(self, subject: str) -> None:
        """Request a forecast as a person does, and wait for its pictures."""
        self.page.fill("#subject", subject)
        self.page.click("#ask-subject")
        self.wait_until_done(subject)

    def wait_until_done(self, subject: str) -> None:
        """Wait for the pictures of a finished forecast."""
        title = self.page.locator("#title")
        title.filter(has_text=subject).wait_for(timeout=DONE_MS)
        self.page.locator("#take-zip").wait_for(timeout=DONE_MS)
        self.settle()

    def settle(self) -> None:
        """Wait until the last change is drawn."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def count_pixels(self, arm: str, condition: str, *, half: str = "all") -> int:
        """Count the pixels (r, g, b) of an arm's tile that meet a condition in JavaScript.

        `half` is left, right or all of the picture.
        """
        self.settle()
        count: int = self.page.evaluate(
            """([arm, condition, half]) => {
                const canvas = document.querySelector(`canvas[data-arm="${arm}"]`);
                const { width, height } = canvas;
                const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
                const tests = {
                    coloured: (r, g, b) => Math.max(r, g, b) - Math.min(r, g, b) > 12,
                    green: (r, g, b) => g > 150 && r < 90 && b < 190,
                    grey: (r, g, b) => r === g && g === b && r > 0,
                };
                let count = 0;
                for (let i = 0; i < width * height; i++) {
                    const x = i % width;
                    if (half === "left" && x >= width / 2) continue;
                    if (half === "right" && x < width / 2) continue;
                    if (tests[condition](data[4 * i], data[4 * i + 1], data[4 * i + 2])) count++;
                }
                return count;
            }""",
            [arm, condition, half],
        )
        return count

    def set_slider(self, name: str, value: float) -> None:
        """Move a slider to a value."""
        self.page.evaluate(
            """([id, value]) => {
                const slider = document.getElementById(id);
                slider.value = value;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
            }""",
            [name, value],
        )
        self.settle()


Launch = Callable[..., Browser]
"""Starts Chromium without a window, with further flags."""


@contextmanager
def launch_browsers() -> Iterator[Launch]:
    """Yield a function that starts Chromium, and close all of its browsers at the end."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("CHROMIUM IS MISSING: install Debian's chromium to test the page")
    browsers = []
    with sync_playwright() as playwright:

        def launch(*flags: str) -> Browser:
            browsers.append(
                playwright.chromium.launch(executable_path=executable, args=[*FLAGS, *flags])
            )
            return browsers[-1]

        yield launch
        for browser in browsers:
            browser.close()


@contextmanager
def open_page(browser: Browser, url: str, **options: object) -> Iterator[OpenPage]:
    """Open a URL in a window of its own. Fails at the end if anything went wrong in it."""
    context = browser.new_context(accept_downloads=True, **options)  # type: ignore[arg-type]
    page = context.new_page()
    opened = OpenPage(page, url)
    page.on("console", opened.record)
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.goto(url)
    yield opened
    context.close()
    assert opened.errors == []
