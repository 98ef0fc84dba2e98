"""The binary view of a forecast over HTTP, and the page's own files."""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import nibabel as nib
import numpy as np
import pytest

from lesioncast.bundle.evaluation_card import EVALUATION, EvaluationCard, write_evaluation_card
from lesioncast.forecasting.view.encode import decode_view
from lesioncast.forecasting.view.schemas import ViewHeader
from serve.api.routes.page import SECURITY_HEADERS, page_files
from serve.client import Client
from serve.settings import ServiceSettings
from storage import open_store
from tests.support.forecast import write_bundle, write_store
from tests.support.service import (
    Service,
    assert_problem,
    key_line,
    run_service,
    wait_for_success,
    wait_until,
)

SUBJECT = "sub-02"  # active at w048 and w096, on the patient's left of the slab
ARMS = ["placebo", "ocrelizumab"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("view")
    write_store(root / "store.zarr", root / "bids")
    write_bundle(root / "bundle")
    return root


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    settings = ServiceSettings(
        bundle=root / "bundle", store=root / "store.zarr", artifacts=root / "artifacts",
        seeds_per_block=2, demo=True,
    )  # fmt: skip
    with run_service(settings) as service:
        yield service


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    service.reset()
    with httpx2.Client(base_url=service.url, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def forecast(service: Service) -> str:
    with Client(service.url) as client:
        job = client.create_forecast(SUBJECT, arms=ARMS, samples=4)
        return wait_for_success(client, job)


def read_view(http: httpx2.Client, forecast: str) -> tuple[ViewHeader, bytes]:
    response = http.get(f"/v1/forecasts/{forecast}/view")
    assert response.status_code == 200, response.text
    return decode_view(response.content)


def layer(
    header: ViewHeader,
    body: bytes,
    kind: str,
    *,
    session: str | None = None,
    arm: str | None = None,
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    (found,) = [
        each
        for each in header.layers
        if (each.kind, each.session, each.arm) == (kind, session, arm)
    ]
    content = body[found.offset : found.offset + found.length]
    size = int(np.prod(header.shape))
    if found.dtype == "bits":
        return np.unpackbits(np.frombuffer(content, np.uint8), count=size).reshape(header.shape)
    dtype = {"uint8": "u1", "float16": "<f2"}[found.dtype]
    return np.frombuffer(content, dtype).reshape(header.shape)


def canonical(image: nib.Nifti1Image) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    return np.asarray(nib.as_closest_canonical(image).dataobj).transpose(2, 1, 0)


def test_probabilities_of_the_view_are_those_of_the_nifti_files(
    http: httpx2.Client, forecast: str, tmp_path: Path
) -> None:
    header, body = read_view(http, forecast)
    for arm in ARMS:
        (tmp_path / "map.nii.gz").write_bytes(
            http.get(f"/v1/forecasts/{forecast}/arms/{arm}").content
        )
        image = nib.as_closest_canonical(nib.load(tmp_path / "map.nii.gz"))
        start = np.linalg.inv(image.affine) @ np.array(header.affine) @ [0, 0, 0, 1]
        w, h, s = np.round(start[:3]).astype(int)
        size = header.shape
        expected = canonical(image)[s : s + size[0], h : h + size[1], w : w + size[2]]
        assert np.array_equal(layer(header, body, "probability", arm=arm), expected.astype("<f2"))
        assert expected.sum() == pytest.approx(canonical(image).sum()), "nothing lies outside"
        assert expected.any()


def test_images_and_lesions_of_the_view_are_those_of_the_store(
    http: httpx2.Client, forecast: str, root: Path
) -> None:
    header, body = read_view(http, forecast)
    store = open_store(root / "store.zarr")
    case = store.case(SUBJECT)
    arrays = store.read(case.index)
    # The slab begins at column -1 of the file, which has 14 of them, so that two are padding.
    assert header.shape == (5, 16, 14)
    assert np.array_equal(
        layer(header, body, "net2", session="w096"), arrays.masks[2, 2][..., 1:15]
    )
    grey = np.round((arrays.flair[1][..., 1:15].astype(np.float32) + 1) * 127.5)
    assert np.array_equal(layer(header, body, "flair", session="w048"), grey)
    assert header.received_arm == case.arm
    assert not [each for each in header.layers if each.kind == "flair" and each.session == "w096"]


def test_numbers_and_warnings_of_the_view_are_those_of_the_result(
    http: httpx2.Client, forecast: str
) -> None:
    header, _ = read_view(http, forecast)
    result = http.get(f"/v1/forecasts/{forecast}/result").json()
    assert [arm.name for arm in header.arms] == ARMS
    for arm in header.arms:
        expected = result["arms"][arm.name]
        assert arm.lesions is not None
        assert arm.lesions.value == pytest.approx(expected["count"]["mean"])
        assert arm.volume_mm3 == pytest.approx(expected["volume_mm3"]["mean"])
        assert arm.kept_samples == 4
    assert header.disclaimers == result["disclaimers"]
    assert header.notes == result["notes"]
    assert header.warnings == [warning["text"] for warning in result["warnings"]]
    assert header.typicality == "Typicality: not known."


def test_differences_state_the_error_that_the_evaluation_found(
    http: httpx2.Client, forecast: str, root: Path
) -> None:
    header, _ = read_view(http, forecast)
    assert [arm.difference_error for arm in header.arms] == [None, None]
    card = EvaluationCard(
        bundle=header.bundle, test_cases=1, date=None, code=None, store=None, findings={},
        identifiability_warnings=(), p_active_errors={"placebo": 0.02, "ocrelizumab": -0.03},
    )  # fmt: skip
    write_evaluation_card(root / "bundle", card)
    try:
        header, _ = read_view(http, forecast)
    finally:
        (root / "bundle" / EVALUATION).unlink()
    assert [arm.difference_error for arm in header.arms] == pytest.approx([0, 0.05])


def test_samples_average_to_the_probability(http: httpx2.Client, forecast: str) -> None:
    header, body = read_view(http, forecast)
    size = int(np.prod(header.shape))
    samples = []
    for index in range(4):
        response = http.get(f"/v1/forecasts/{forecast}/arms/placebo/samples/{index}")
        assert response.status_code == 200, response.text
        samples.append(np.unpackbits(np.frombuffer(response.content, np.uint8), count=size))
    mean = np.mean(samples, axis=0).reshape(header.shape).astype("<f2")
    assert np.array_equal(mean, layer(header, body, "probability", arm="placebo"))
    assert_problem(http.get(f"/v1/forecasts/{forecast}/arms/placebo/samples/4"), 404, "index")
    assert_problem(http.get(f"/v1/forecasts/{forecast}/arms/placebo/samples/16"), 422, "index")
    assert_problem(http.get(f"/v1/forecasts/{forecast}/arms/aspirin/samples/0"), 404, "arm")


def test_a_running_forecast_shows_the_samples_so_far(http: httpx2.Client, service: Service) -> None:
    service.budget = 1
    with Client(service.url) as client:
        job = client.create_forecast(SUBJECT, arms=ARMS, samples=4)
        wait_until(lambda: client.status(job)["progress"]["done"] == 2)
        header, body = read_view(http, job)
        assert not header.complete
        drawn = [arm for arm in header.arms if arm.samples]
        assert [arm.samples for arm in drawn] == [2]
        assert layer(header, body, "probability", arm=drawn[0].name).max() <= 1
        assert drawn[0].p_active is None
        assert drawn[0].active_fraction is not None
        first = http.get(f"/v1/forecasts/{job}/arms/{drawn[0].name}/samples/0")
        assert len(first.content) == -(-int(np.prod(header.shape)) // 8)
        service.reset()
        wait_for_success(client, job)


def test_an_unchanged_view_is_not_sent_again(http: httpx2.Client, forecast: str) -> None:
    first = http.get(f"/v1/forecasts/{forecast}/view")
    assert first.headers["cache-control"] == "private, no-cache"
    assert first.headers["content-encoding"] == "gzip"
    again = http.get(
        f"/v1/forecasts/{forecast}/view", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")
    plain = http.get(f"/v1/forecasts/{forecast}/view", headers={"Accept-Encoding": "identity"})
    assert plain.content == first.content


def test_a_cancelled_forecast_has_no_view_and_keeps_no_samples(
    http: httpx2.Client, service: Service, forecast: str
) -> None:
    service.paused = True
    with Client(service.url) as client:
        job = client.create_forecast(SUBJECT, arms=ARMS, samples=4)
        client.delete(job)
    assert_problem(http.get(f"/v1/forecasts/{job}/view"), 409)
    service.reset()
    with Client(service.url) as client:
        other = wait_for_success(client, client.create_forecast("sub-01", arms=ARMS, samples=2))
        kept = service.settings.artifacts / "samples" / f"{other}.npz"
        assert kept.is_file()
        client.delete(other)
    assert not kept.exists()


def test_the_page_and_its_files_have_strict_headers(http: httpx2.Client) -> None:
    paths = ["/", *(f"/page/{name}" for name in page_files())]
    assert len(paths) > 10
    for path in paths:
        response = http.get(path)
        assert response.status_code == 200, path
        for name, value in SECURITY_HEADERS.items():
            assert response.headers[name] == value
        assert http.head(path).status_code == 200
        etag = {"If-None-Match": response.headers["etag"]}
        assert http.get(path, headers=etag).status_code == 304
    assert "unsafe" not in SECURITY_HEADERS["Content-Security-Policy"]
    assert_problem(http.get("/page/secrets.js"), 404)
    assert_problem(http.get("/page/%2e%2e%2fkeys.py"), 404)


def test_the_page_needs_no_key_and_its_data_need_one(root: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(key_line("page", "secret"))
    settings = ServiceSettings(
        bundle=root / "bundle", store=root / "store.zarr", artifacts=tmp_path / "artifacts",
        keys=tmp_path / "keys",
    )  # fmt: skip
    with run_service(settings) as service, httpx2.Client(base_url=service.url) as http:
        assert http.get("/").status_code == 200
        assert http.get("/page/main.js").status_code == 200
        assert http.post("/").status_code == 401
        assert http.get("/v2/models/lesioncast").status_code == 401
        assert http.get(f"/v1/forecasts/{'0' * 32}/view").status_code == 401


def test_truth_is_refused_outside_demo_mode() -> None:
    with pytest.raises(ValueError, match="truth: expected it in demo mode alone"):
        ServiceSettings(
            bundle=Path("bundle"), store=Path("store"), keys=Path("keys"), truth=Path("bids")
        )
