"""The page in headless Chromium against the service: everything that a person does with it."""

import csv
import io
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser
from pydicom import dcmread

from serve.client import Client
from tests.serve.page.browser import DONE_MS, NO_WEBGL, Launch, OpenPage, launch_browsers, open_page
from tests.support.bids import path_of
from tests.support.dicom import write_series
from tests.support.forecast import GEOMETRY
from tests.support.service import (
    Service,
    key_line,
    run_service,
    trial_settings,
    wait_for_success,
    write_trial_served,
)

SUBJECT = "sub-01"
ARMS = ("placebo", "avonex", "ocrelizumab")
DESKTOP = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    # A DICOM SEG cannot say that a grid is sheared, as that of other tests is.
    write_trial_served(root, unlabelled="sub-03", geometry=replace(GEOMETRY, tilt=0))
    return root


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[Service]:
    with run_service(trial_settings(root, root / "artifacts")) as service:
        yield service


@pytest.fixture
def service(running: Service) -> Service:
    running.reset()
    return running


@pytest.fixture(scope="module")
def launch() -> Iterator[Launch]:
    with launch_browsers() as launch:
        yield launch


@pytest.fixture(scope="module")
def browser(launch: Launch) -> Browser:
    return launch()


@pytest.fixture
def opened(browser: Browser, service: Service) -> Iterator[OpenPage]:
    with open_page(browser, service.url, viewport=DESKTOP) as opened:
        opened.page.locator("#arm-choice input").first.wait_for(state="attached")
        yield opened


@pytest.fixture(scope="module")
def finished(running: Service) -> str:
    """Return the id of a finished forecast of the subject, which several tests look at."""
    with Client(running.url) as client:
        return wait_for_success(client, client.create_forecast(SUBJECT, samples=16))


@pytest.fixture
def shown(browser: Browser, service: Service, finished: str) -> Iterator[OpenPage]:
    """Return the page with a finished forecast, opened by its link."""
    with open_page(browser, f"{service.url}/#f={finished}", viewport=DESKTOP) as opened:
        opened.wait_until_done(SUBJECT)
        yield opened


def test_the_printed_table_is_as_wide_as_the_paper(shown: OpenPage) -> None:
    shown.page.emulate_media(media="print")
    shown.page.set_viewport_size({"width": 700, "height": 1000})  # A4 between margins of 12 mm
    right = shown.page.evaluate(
        "() => document.getElementById('numbers').getBoundingClientRect().right"
    )
    assert right <= 700


def download(opened: OpenPage, button: str, folder: Path) -> Path:
    with opened.page.expect_download() as event:
        opened.page.click(button)
    path = folder / event.value.suggested_filename
    event.value.save_as(path)
    return path


def test_a_patient_is_picked_and_compared_in_three_clicks(opened: OpenPage) -> None:
    page = opened.page
    page.fill("#subject", SUBJECT)
    page.click("#ask-subject")
    opened.wait_until_done(SUBJECT)
    assert [canvas.get_attribute("data-arm") for canvas in page.locator("#tiles canvas").all()] == [
        *ARMS
    ]
    assert "P(active)" in page.inner_text("#tiles figure >> nth=0")
    assert "lowest" in page.inner_text("#sentence") or "every treatment" in page.inner_text(
        "#sentence"
    )
    page.check("input[value=difference]")
    opened.settle()
    # The reference minus itself is zero everywhere.
    page.uncheck("#outlines input[value=t2]")
    assert opened.count_pixels("placebo", "coloured") == 0
    warnings = page.inner_text("#warnings")
    for sentence in ("Predicted, not observed.", "Research use only", "counterfactual"):
        assert sentence in warnings
    # The bundle of these tests has no reference, and its patients are no real ones.
    page.wait_for_selector("#typicality:not(:empty)")  # empty while the forecast runs
    assert page.inner_text("#typicality") == "Typicality: not known."
    assert page.locator("#severe").is_hidden()


def test_progress_is_shown_and_pictures_come_before_the_end(
    opened: OpenPage, service: Service
) -> None:
    service.budget = 2
    page = opened.page
    page.fill("#subject", "sub-02")
    page.click("#ask-subject")
    page.locator("#progress-text").filter(has_text="4 of 48 samples").wait_for(timeout=DONE_MS)
    page.locator("#tiles canvas").first.wait_for(timeout=DONE_MS)
    assert page.locator("#take-zip").is_hidden()
    service.reset()
    opened.wait_until_done("sub-02")
    assert page.locator("#progress").is_hidden()


def test_a_forecast_is_cancelled(opened: OpenPage, service: Service) -> None:
    service.paused = True
    opened.page.fill("#subject", SUBJECT)
    opened.page.click("#ask-subject")
    opened.page.locator("#cancel").wait_for(timeout=DONE_MS)
    opened.page.click("#cancel")
    opened.page.locator("#message").filter(has_text="cancelled").wait_for(timeout=DONE_MS)
    assert opened.page.locator("#progress").is_hidden()
    cancelled = opened.page.locator("#earlier button").filter(has_text="cancelled")
    cancelled.first.wait_for(timeout=DONE_MS)


def test_an_unknown_patient_is_refused_at_the_field(opened: OpenPage) -> None:
    opened.page.fill("#subject", "sub-99")
    opened.page.click("#ask-subject")
    problem = opened.page.locator('.problem[data-field="subject"]')
    problem.filter(has_text="sub-99").or_(problem.filter(has_text="expected")).wait_for()
    opened.errors.clear()  # Chromium reports the answer 422 as an error


def test_canvas_values_are_the_voxels_of_the_nifti_file(shown: OpenPage, tmp_path: Path) -> None:
    forecast = shown.page.evaluate("() => new URLSearchParams(location.hash.slice(1)).get('f')")
    for arm in ARMS[:2]:
        header, values = shown.page.evaluate(
            """async ([forecast, arm]) => {
                const { decodeView } = await import("./page/view.js");
                const answer = await fetch(`v1/forecasts/${forecast}/view`);
                const view = decodeView(new Uint8Array(await answer.arrayBuffer()));
                return [view.header, [...view.probability.get(arm)]];
            }""",
            [forecast, arm],
        )
        shown.page.select_option("#nifti-arm", arm)
        image = nib.as_closest_canonical(nib.load(download(shown, "#take-nifti", tmp_path)))
        start = np.linalg.inv(image.affine) @ np.array(header["affine"]) @ [0, 0, 0, 1]
        w, h, s = np.round(start[:3]).astype(int)
        box = np.asarray(image.dataobj).transpose(2, 1, 0)
        size = header["shape"]
        expected = box[s : s + size[0], h : h + size[1], w : w + size[2]].astype(np.float16)
        assert np.array_equal(np.array(values, np.float16).reshape(size), expected)
        assert expected.any()


def test_the_tile_is_coloured_where_the_probability_reaches_the_threshold(shown: OpenPage) -> None:
    page = shown.page
    page.uncheck("#outlines input[value=t2]")
    shown.set_slider("threshold", 0.3)
    low = shown.count_pixels("placebo", "coloured")
    shown.set_slider("threshold", 0.95)
    high = shown.count_pixels("placebo", "coloured")
    assert low > high >= 0
    shown.set_slider("threshold", 1)
    page.check("input[value=outline]")
    outline = shown.count_pixels("placebo", "coloured")
    shown.set_slider("threshold", 0.3)
    assert shown.count_pixels("placebo", "coloured") != outline


def test_left_and_right_follow_the_convention(shown: OpenPage, root: Path) -> None:
    """An image that is bright on the patient's right alone is bright on the side of the letter."""
    page = shown.page
    bright = page.evaluate(
        """async () => {
            const { Painter, Geometry, sides } = await import("./page/draw.js");
            const [s, h, w] = [1, 8, 8];
            const flair = new Uint8Array(64).map((_, i) => (i % 8 >= 4 ? 200 : 0)); // the right
            const view = { header: { shape: [s, h, w], spacing_mm: [3, 1, 1], reference_arm: "a" },
                flair: new Map([["w048", flair]]), probability: new Map(), masks: [] };
            const found = {};
            for (const convention of ["radiological", "neurological"]) {
                const state = { slice: 0, session: "w048", low: 0, high: 255, zoom: 1, x: .5, y: .5,
                    sample: -1, mode: "probability", outlines: [], convention };
                const canvas = document.createElement("canvas");
                new Painter(view).paint(canvas, "a", state, new Geometry(view, state, 80), null);
                const at = (x) => canvas.getContext("2d").getImageData(x, 20, 1, 1).data[0];
                found[convention] = [at(25) > 100 ? "left" : "", at(55) > 100 ? "right" : "",
                    sides(convention).left, sides(convention).right];
            }
            return found;
        }"""
    )
    assert bright == {
        "radiological": ["left", "", "R", "L"],
        "neurological": ["", "right", "L", "R"],
    }
    before = shown.count_pixels("placebo", "grey", half="left")
    page.select_option("#convention", "neurological")
    assert shown.count_pixels("placebo", "grey", half="right") == pytest.approx(before, rel=0.02)


def test_slices_zoom_and_keys_change_every_tile(shown: OpenPage) -> None:
    page = shown.page
    page.locator("#title").click()
    first = page.inner_text("#slice-text")
    page.keyboard.press("ArrowUp" if not first.startswith("5") else "ArrowDown")
    shown.settle()
    assert page.inner_text("#slice-text") != first
    labels = [canvas.get_attribute("aria-label") for canvas in page.locator("#tiles canvas").all()]
    page.locator(f"canvas[aria-label*='slice {page.inner_text('#slice-text')}']").first.wait_for()
    labels = [canvas.get_attribute("aria-label") for canvas in page.locator("#tiles canvas").all()]
    slices = {label.split(", ")[1] for label in labels if label}
    assert len(slices) == 1
    page.keyboard.press("2")
    shown.settle()
    assert [c.get_attribute("data-arm") for c in page.locator("#tiles canvas:visible").all()] == [
        "avonex"
    ]
    page.keyboard.press("Escape")
    shown.settle()
    assert page.locator("#tiles canvas:visible").count() == len(ARMS)
    page.keyboard.press("d")
    shown.settle()
    assert page.is_checked("input[value=difference]")
    page.keyboard.press("+")
    shown.settle()
    assert page.inner_text("#zoom-text") == "1.3 ×"


def test_a_segmentation_is_made_on_a_series_of_the_visitor(
    shown: OpenPage, root: Path, tmp_path: Path
) -> None:
    flair = nib.load(path_of(root / "bids", SUBJECT, "w048", "flair"))
    series = write_series(tmp_path / "series", flair.affine[:, [2, 1, 0, 3]], flair.shape[::-1])
    shown.page.click("#take summary")
    shown.page.set_input_files("#series", sorted(series.iterdir()))
    segmentation = dcmread(download(shown, "#take-seg", tmp_path))
    assert segmentation.Modality == "SEG"
    assert len(segmentation.SegmentSequence) == len(ARMS)


def test_files_are_dropped_on_the_form(opened: OpenPage, root: Path) -> None:
    """The session and the kind are read off the file's name."""
    opened.page.click("#upload-details summary")
    opened.page.evaluate(
        """() => {
            const files = new DataTransfer();
            for (const name of ["a_ses-w048_FLAIR.nii.gz", "a_ses-w000_FLAIR.nii.gz",
                "a_ses-w048_desc-T2_mask.nii.gz", "notes.txt"]) {
                files.items.add(new File(["x"], name));
            }
            document.getElementById("upload-form").dispatchEvent(
                new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
        }"""
    )
    chosen = {
        field.get_attribute("name"): field.evaluate("(input) => input.files[0]?.name ?? null")
        for field in opened.page.locator("#upload-fields input").all()
    }
    assert {name: file for name, file in chosen.items() if file} == {
        "w000/flair": "a_ses-w000_FLAIR.nii.gz",
        "w048/flair": "a_ses-w048_FLAIR.nii.gz",
        "w048/t2": "a_ses-w048_desc-T2_mask.nii.gz",
    }
    assert "notes.txt" in opened.page.inner_text('#upload-form .problem[data-field=""]')


def test_the_page_opens_on_an_example_in_demo_mode(root: Path, browser: Browser) -> None:
    with (
        run_service(trial_settings(root, root / "example")) as service,
        open_page(browser, service.url, viewport=DESKTOP) as opened,
    ):
        opened.wait_until_done("sub-0")
        assert opened.page.locator("#tiles canvas").count() == len(ARMS)


def test_the_crosshair_tells_the_values_of_all_arms(shown: OpenPage) -> None:
    canvas = shown.page.locator("canvas[data-arm=placebo]")
    box = canvas.bounding_box()
    assert box is not None
    canvas.click(position={"x": box["width"] * 0.55, "y": box["height"] * 0.5})
    text = shown.page.inner_text("#crosshair")
    assert text.startswith("At ")
    for arm in ARMS:
        assert f"{arm} " in text


def test_single_samples_are_leafed_through(shown: OpenPage) -> None:
    page = shown.page
    page.uncheck("#outlines input[value=t2]")
    with page.expect_response(lambda response: "/samples/0" in response.url) as event:
        page.select_option("#sample", "0")
    assert event.value.status == 200
    page.wait_for_load_state("networkidle")
    counts = []
    for index in range(3):
        page.select_option("#sample", str(index))
        page.wait_for_load_state("networkidle")
        counts.append(sum(shown.count_pixels(arm, "coloured") for arm in ARMS))
    assert max(counts) > 0


def test_a_link_reopens_the_same_view(shown: OpenPage, browser: Browser, service: Service) -> None:
    page = shown.page
    page.check("input[value=difference]")
    shown.set_slider("slice", 1)
    shown.set_slider("threshold", 0.5)
    threshold = page.inner_text("#threshold-text")
    page.wait_for_url(lambda url: "s=1&" in url and "m=difference" in url and "t=0.117" in url)
    with open_page(browser, page.url, viewport=DESKTOP) as again:
        again.wait_until_done(SUBJECT)
        assert again.page.is_checked("input[value=difference]")
        assert again.page.inner_text("#slice-text").startswith("2 of")
        assert again.page.inner_text("#threshold-text") == threshold
        for arm in ARMS:
            for condition in ("coloured", "grey"):
                expected = shown.count_pixels(arm, condition)
                assert again.count_pixels(arm, condition) == expected


def test_every_export_carries_the_warnings(shown: OpenPage, tmp_path: Path) -> None:
    table = download(shown, "#take-csv", tmp_path).read_text()
    assert "# Research use only; not a medical device." in table
    rows = list(csv.reader(line for line in table.splitlines() if not line.startswith("#")))
    assert [row[0].split(" ")[0] for row in rows] == ["Treatment", *ARMS]
    picture = download(shown, "#take-png", tmp_path).read_bytes()
    assert picture.startswith(b"\x89PNG")
    archive = zipfile.ZipFile(io.BytesIO(download(shown, "#take-zip", tmp_path).read_bytes()))
    assert sum(name.endswith("_probseg.nii.gz") for name in archive.namelist()) == len(ARMS)


@pytest.mark.parametrize("source", ["download", "result"])
def test_the_saved_page_opens_without_service_and_network(
    shown: OpenPage, browser: Browser, service: Service, finished: str, tmp_path: Path, source: str
) -> None:
    """The page of a result is written by the code that jobs/forecast.py runs."""
    result = service.settings.artifacts / finished / SUBJECT / f"{SUBJECT}_forecast.html"
    saved = download(shown, "#take-html", tmp_path) if source == "download" else result
    counts = {arm: shown.count_pixels(arm, "coloured") for arm in ARMS}
    with open_page(browser, saved.as_uri(), viewport=DESKTOP, offline=True) as copy:
        copy.page.locator("#title").filter(has_text=SUBJECT).wait_for()
        copy.settle()
        assert {arm: copy.count_pixels(arm, "coloured") > 0 for arm in ARMS} == {
            arm: count > 0 for arm, count in counts.items()
        }
        assert "Research use only" in copy.page.inner_text("#warnings")
        assert copy.page.locator("#ask").is_hidden()
        copy.page.check("input[value=difference]")
        copy.settle()


def test_files_are_sent_or_refused_at_their_field(opened: OpenPage, root: Path) -> None:
    page = opened.page
    page.click("#upload-details summary")
    flair = [path_of(root / "bids", SUBJECT, session, "flair") for session in ("w000", "w048")]
    page.set_input_files('input[name="w000/flair"]', flair[0])
    broken = root / "broken.nii.gz"
    broken.write_bytes(b"no image")
    page.set_input_files('input[name="w048/flair"]', broken)
    page.click("#upload-form button")
    problem = page.locator('.problem[data-field="w048/flair"]')
    problem.filter(has_text="w048/flair").wait_for(timeout=DONE_MS)
    opened.errors.clear()  # Chromium reports the answer 422 as an error
    page.set_input_files('input[name="w048/flair"]', flair[1])
    page.click("#upload-form button")
    opened.wait_until_done("sub-upload")
    assert problem.inner_text() == ""


def test_3d_opens_on_demand_and_gives_its_context_back(shown: OpenPage) -> None:
    page = shown.page
    page.click("#open-3d")
    page.locator("#message-3d").filter(has_text="over the FLAIR").wait_for(timeout=DONE_MS)
    assert page.locator("#canvas-3d canvas").count() == 1
    page.click("#close-3d")
    assert page.locator("#canvas-3d canvas").count() == 0
    shown.errors.clear()  # the lost context is a warning of Chromium


def test_a_browser_without_webgl_compares_all_the_same(launch: Launch, service: Service) -> None:
    with open_page(launch(*NO_WEBGL), service.url, viewport=DESKTOP) as opened:
        opened.page.locator("#arm-choice input").first.wait_for(state="attached")
        opened.forecast(SUBJECT)
        assert opened.count_pixels("placebo", "grey") > 0
        opened.page.click("#open-3d")
        opened.page.locator("#message-3d").filter(has_text="no WebGL 2").wait_for()


def test_a_lost_network_is_told_in_a_sentence(shown: OpenPage) -> None:
    shown.page.context.set_offline(True)
    shown.page.click("#ask-subject", force=True)
    shown.page.fill("#subject", SUBJECT)
    shown.page.click("#ask-subject")
    shown.page.locator(".problem").filter(has_text="cannot be reached").wait_for()
    shown.page.check("input[value=difference]")  # the pictures still work
    shown.settle()
    shown.errors.clear()


def test_with_keys_the_page_asks_for_one(root: Path, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(key_line("page", "secret"))
    settings = trial_settings(root, tmp_path / "artifacts", keys=tmp_path / "keys", demo=False)
    with run_service(settings) as service, open_page(browser, service.url) as opened:
        opened.page.locator("#message").filter(has_text="needs an API key").wait_for()
        opened.page.fill("#api-key", "wrong")
        opened.page.click("#sign-in button")
        opened.page.locator("#message").filter(has_text="needs an API key").wait_for()
        opened.page.fill("#api-key", "secret")
        opened.page.click("#sign-in button")
        opened.page.locator("#arm-choice input").first.wait_for(state="attached")
        opened.page.locator("#sign-in").wait_for(state="hidden")
        assert "secret" not in opened.page.url
        opened.errors.clear()  # Chromium reports the answers 401 as errors


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_bars_people_with_disabilities(
    browser: Browser, service: Service, finished: str, scheme: str
) -> None:
    url = f"{service.url}/#f={finished}"
    with open_page(browser, url, viewport=DESKTOP, color_scheme=scheme) as opened:
        opened.wait_until_done(SUBJECT)
        for summary in opened.page.locator("summary:visible").all():
            summary.click()
        found = Axe().run(opened.page)
        serious = [
            f"{each['id']}: {[node['html'][:120] for node in each['nodes']]}"
            for each in found.response["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []


@pytest.mark.parametrize("width", [390, 720, 1024, 1440])
def test_nothing_is_wider_than_the_screen(
    browser: Browser, service: Service, finished: str, width: int
) -> None:
    """720 pixels are a screen of 1440 at 200 % zoom."""
    size = {"width": width, "height": 844}
    with open_page(browser, f"{service.url}/#f={finished}", viewport=size) as opened:
        opened.wait_until_done(SUBJECT)
        assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= width
