"""Time the page: first paint, change of slice and threshold, and memory over many changes.

    python tests/benchmarks/service/page_speed.py [--repeats 100]

Headless Chromium shows a view of six arms of 15 x 256 x 256 voxels. The service's answers are made
up here, so that nothing but the page is timed. A time runs from an input event to the end of the
frame that shows its effect.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, Route

from lesioncast.forecasting.view.encode import LayerWriter, encode_view
from lesioncast.forecasting.view.schemas import ArmNumbers, ViewHeader
from storage import VisitSchedule
from tests.serve.page.browser import launch_browsers

ARMS = ("placebo", "laquinimod", "avonex", "interferon", "fumarate", "ocrelizumab")
SHAPE = (15, 256, 256)
PAGE = Path(__file__).resolve().parents[3] / "serve" / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
TIME_INPUT = """([id, values]) => new Promise(async (done) => {
    const slider = document.getElementById(id);
    const times = [];
    for (const value of values) {
        const start = performance.now();
        slider.value = value;
        slider.dispatchEvent(new Event("input", { bubbles: true }));
        // A task that is queued inside the frame runs after the frame is painted.
        await new Promise((painted) => requestAnimationFrame(() => {
            const channel = new MessageChannel();
            channel.port1.onmessage = painted;
            channel.port2.postMessage(null);
        }));
        times.push(performance.now() - start);
    }
    done(times);
})"""


def made_up_view(*, seed: int = 0) -> bytes:
    """Return a view with smooth blobs of probability over noise."""
    rng = np.random.default_rng(seed)
    writer = LayerWriter(None, VisitSchedule())  # type: ignore[arg-type]
    head = np.hypot(*np.meshgrid(np.linspace(-1, 1, 256), np.linspace(-1, 1, 256))) < 0.8
    flair = np.where(head, rng.uniform(-0.6, 0.9, SHAPE), -1)
    writer.add("flair", flair, session="w048")
    writer.add("t2", head & (rng.random(SHAPE) < 0.002), session="w048")
    for k, arm in enumerate(ARMS):
        probability = head * rng.gamma(0.2, 0.02, SHAPE) / (k + 1)
        writer.add("probability", np.minimum(probability, 1), arm=arm)
    header = ViewHeader(
        version=1, forecast="0" * 32, subject="sub-0001", complete=True, shape=SHAPE,
        spacing_mm=(3, 1, 1), affine=np.diag([1.0, 1, 3, 1]).tolist(), target="new lesions",
        sessions=["w000", "w048"], reference_arm=ARMS[0], received_arm=None, observed_lesions=None,
        samples=16, seed=0, disclaimers=["Made up."], warnings=[], notes=[], bundle="0" * 64,
        layers=writer.layers,
        arms=[
            ArmNumbers(
                name=arm, received=False, samples=16, kept_samples=0, p_active=0.4,
                active_fraction=None, expected_lesions=1.0, lesions=None, volume_mm3=40.0,
                regions={}, minus_reference=None, difference_error=None,
            )
            for arm in ARMS
        ],
    )  # fmt: skip
    return encode_view(header, bytes(writer.body))


def answer(view: bytes) -> Callable[[Route], None]:
    """Return a handler of the page's requests."""

    def fulfil(route: Route) -> None:
        path = route.request.url.partition("page.test/")[2].partition("?")[0].partition("#")[0]
        parts = path.split("/")
        if path == "" or parts[0] == "page":
            file = PAGE / (parts[-1] or "index.html")
            route.fulfill(body=file.read_bytes(), content_type=TYPES[file.suffix])
        elif parts[-1] == "view":
            route.fulfill(body=view, content_type="application/octet-stream")
        else:
            route.fulfill(body=json.dumps(_document(path)), content_type="application/json")

    return fulfil


def _document(path: str) -> object:
    status = {
        "state": "succeeded", "progress": {"done": 96, "total": 96}, "error": None,
        "request": {"subject": "sub-0001"}, "subject": "sub-0001",
    }  # fmt: skip
    if path.startswith("v2/models"):
        visits = {"w000": "w000 (day 0)", "w048": "w048 (day 336)"}
        return {"arms": ARMS, "sessions": [["w000", "w048"]], "covariates": [], "visits": visits}
    if path == "v1/forecasts":
        return {"forecasts": [{"id": f"{k:032x}", **status} for k in range(20)], "next": None}
    if path.startswith("v1/forecasts/"):
        return {"id": path.split("/")[2], **status}
    return {"subjects": [], "next": None}


def heap_bytes(page: Page) -> int:
    """Return the size of the JavaScript heap after a garbage collection."""
    session = page.context.new_cdp_session(page)
    for _ in range(3):
        session.send("HeapProfiler.collectGarbage")
    used: int = session.send("Runtime.getHeapUsage")["usedSize"]
    return used + int(session.send("Runtime.getHeapUsage").get("backingStorageSize", 0))


def measure(repeats: int, *, forecasts: int = 20) -> dict[str, float]:
    """Return median and 95th percentile in ms of each input, and the growth of the heap."""
    view = made_up_view()
    figures: dict[str, float] = {"view_mb": len(view) / 1e6}
    with launch_browsers() as launch:
        page = launch().new_page(viewport={"width": 1440, "height": 900})
        page.on("pageerror", lambda error: print(error))
        page.route("**/*", answer(view))
        page.goto("http://page.test/")
        page.locator("#take-zip").wait_for(timeout=60_000)
        figures["first_paint_ms"] = page.evaluate(
            "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"
        )
        inputs = {
            "slice": [k % SHAPE[0] for k in range(repeats)],
            "threshold": [0.2 + 0.6 * k / repeats for k in range(repeats)],
        }
        for name, values in inputs.items():
            page.evaluate(TIME_INPUT, [name, values[:5]])
            times = page.evaluate(TIME_INPUT, [name, values])
            figures[f"{name}_median_ms"] = statistics.median(times)
            figures[f"{name}_p95_ms"] = float(np.quantile(times, 0.95))
        before = heap_bytes(page)
        page.evaluate(TIME_INPUT, ["slice", [k % SHAPE[0] for k in range(2 * repeats)]])
        for k in range(forecasts):
            page.locator("#earlier button").nth(k).click()
            page.locator(f'#earlier button[data-forecast="{k:032x}"][aria-current=true]').wait_for()
            page.locator("#take-zip").wait_for()
        page.wait_for_load_state("networkidle")
        figures["heap_growth"] = heap_bytes(page) / before - 1
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=100)
    for name, value in measure(parser.parse_args().repeats).items():
        print(f"{name:22} {value:8.3f}")
