"""A change draws again only what it changes: the page on a made-up view, without a service."""

from collections.abc import Iterator

import pytest

from tests.benchmarks.service.page_speed import answer, made_up_view
from tests.serve.page.browser import DONE_MS, OpenPage, launch_browsers

RECORD = """() => {
    window.changed = new Set();
    new MutationObserver((records) => {
        for (const { target } of records) changed.add(target.id || target.parentElement.id);
    }).observe(document.getElementById("compare"), {
        subtree: true, childList: true, characterData: true, attributes: true,
        attributeFilter: ["hidden", "aria-valuetext"],
    });
    window.filled = 0;
    const fillRect = CanvasRenderingContext2D.prototype.fillRect;
    CanvasRenderingContext2D.prototype.fillRect = function (...box) {
        if (this.canvas.closest("#colour-bar")) filled++;
        fillRect.apply(this, box);
    };
}"""


@pytest.fixture
def shown() -> Iterator[OpenPage]:
    """Return the page with a made-up view, which records what changes from then on."""
    with launch_browsers() as launch:
        context = launch().new_context(viewport={"width": 1440, "height": 900})
        context.route("**/*", answer(made_up_view()))
        page = context.new_page()
        page.goto("http://page.test/")
        page.locator("#take-zip").wait_for(timeout=DONE_MS)
        opened = OpenPage(page, page.url)
        opened.settle()
        page.evaluate(RECORD)
        yield opened


def test_a_change_sets_only_the_texts_and_controls_that_differ(shown: OpenPage) -> None:
    for name, expected in {
        "slice": {"slice", "slice-text"},
        "threshold": {"threshold", "threshold-text", "colour-ticks"},
    }.items():
        shown.page.evaluate("() => changed.clear()")
        shown.set_slider(name, 3)
        assert set(shown.page.evaluate("() => [...changed]")) == expected


def test_the_colours_of_the_bar_are_drawn_again_only_in_another_mode(shown: OpenPage) -> None:
    shown.set_slider("threshold", 0.7)
    shown.set_slider("scale", 0.9)
    assert shown.page.evaluate("filled") == 0
    shown.page.check("input[value=difference]")
    shown.settle()
    assert shown.page.evaluate("filled") == 512  # one column of the bar each
