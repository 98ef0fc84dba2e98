"""Uploaded images give the forecast of the same subject in the store; corrupt ones do no harm."""

import argparse
import gzip
import io
import json
import math
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx2
import nibabel as nib
import numpy as np
import pytest

import lesioncast
from lesioncast.config import load_config
from lesioncast.errors import ForecastError
from lesioncast.forecasting.output.bids import forecast_path, summary_path
from lesioncast.forecasting.output.summary import read_summary
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.imaging.covariates import Covariate
from lesioncast.jobs.command.arguments import config_path
from lesioncast.jobs.forecast import forecast as run_forecast
from serve.api import multipart
from serve.artifacts import ORPHAN_AGE_SECONDS, result_dir, stale_uploads, upload_dir
from serve.client import Client
from serve.model_info import mount_model
from serve.settings import ServiceSettings
from serve.uploads import UPLOAD_FIELDS
from tests.support.bids import ARMS, path_of, write_subject
from tests.support.bids_validator import bids_uris, dead_links, validator_reports
from tests.support.corrupt_trials import FILES, GRIDS, HEADERS, Corruption
from tests.support.corruptions import GEOMETRY as CORRUPTED_GEOMETRY
from tests.support.service import (
    Service,
    assert_problem,
    run_service,
    trial_settings,
    wait_for_success,
    wait_until,
    write_trial_served,
)

SUBJECT = "sub-03"
SENT = [name for name in UPLOAD_FIELDS if name != "w048/brain_mask"]
Files = dict[str, tuple[str, bytes]]
NOT_SENT = {
    "a folder", "a link to nothing", "a pipe", "a file that cannot be read", "w096 moved",
}  # fmt: skip
SENDABLE = [entry for entry in (*FILES, *HEADERS, *GRIDS) if entry.name not in NOT_SENT]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a trial; of one subject it holds only what can be uploaded."""
    folder = tmp_path_factory.mktemp("uploads")
    write_trial_served(folder, unlabelled=SUBJECT)
    return folder


def settings_in(root: Path, name: str, **given: object) -> ServiceSettings:
    return trial_settings(root, root / name, **given)


@pytest.fixture(scope="module")
def service(root: Path) -> Iterator[Service]:
    limits = {"max_file": 50_000, "max_upload": 200_000, "max_voxels": 2**20}
    with run_service(settings_in(root, "out", **limits)) as service:
        yield service


@pytest.fixture
def images(root: Path) -> dict[str, Path]:
    """Return the images of the subject by field."""
    return {name: path_of(root / "bids", SUBJECT, *name.split("/")) for name in SENT}


@pytest.fixture
def files(images: dict[str, Path]) -> Files:
    """Return a form with the FLAIR images only."""
    fields = ("w000/flair", "w048/flair")
    return {name: ("../../etc/passwd", images[name].read_bytes()) for name in fields}


def test_an_uploaded_subject_gets_the_same_forecast_as_in_the_store(
    client: Client, images: dict[str, Path], tmp_path: Path
) -> None:
    stored = wait_for_success(client, client.create_forecast(SUBJECT, samples=4, seed=5))
    sent = wait_for_success(
        client, client.create_forecast(SUBJECT, images=images, samples=4, seed=5)
    )
    assert client.result(sent) == client.result(stored)
    for arm in ARMS:
        for job in (stored, sent):
            client.download_probability_map(job, arm, tmp_path / f"{job}.nii.gz")
        assert (tmp_path / f"{sent}.nii.gz").read_bytes() == (
            tmp_path / f"{stored}.nii.gz"
        ).read_bytes()
    assert "upload" in client.status(sent)["request"]


def test_service_job_and_python_api_give_the_same_bits(
    client: Client, root: Path, images: dict[str, Path], tmp_path: Path
) -> None:
    """Of uploaded files, of the subject in the store, and of images in memory."""
    in_memory = {name: nib.load(path) for name, path in images.items()}
    patient = lesioncast.Patient(subject=SUBJECT)
    forecast = lesioncast.load_bundle(root / "bundle").forecast(
        in_memory, patient=patient, samples=4, seed=5, settings=ForecastSettings(batch_size=3)
    )
    sent = wait_for_success(
        client, client.create_forecast(SUBJECT, images=images, samples=4, seed=5)
    )
    arguments = argparse.Namespace(
        store=root / "store.zarr", bundle=root / "bundle", out=tmp_path / "job", bids=None,
        subjects=SUBJECT, local=True,
    )  # fmt: skip
    keys = ["forecast.samples=4", "seed=5", f"arms=[{','.join(ARMS)}]"]
    run_forecast(load_config(config_path("demo"), [*keys, "forecast.sessions=[]"]), arguments)
    written = read_summary(summary_path(tmp_path / "job", SUBJECT))
    record = client.result(sent)
    for arm in ARMS:
        client.download_probability_map(sent, arm, tmp_path / f"{arm}.nii.gz")
        served = nib.load(tmp_path / f"{arm}.nii.gz")
        of_job = nib.load(forecast_path(tmp_path / "job", SUBJECT, arm))
        in_process = forecast.arms[arm].probability
        assert 0 < served.get_fdata().max() <= 1
        assert np.array_equal(served.get_fdata(), of_job.get_fdata())
        assert np.array_equal(served.get_fdata(), in_process.get_fdata())
        numbers = json.loads(json.dumps(asdict(written.arms[arm])))
        assert record["arms"][arm] == numbers
        assert forecast.summary.arms[arm] == written.arms[arm]


def test_the_files_of_an_upload_name_their_sources_and_no_folder_of_the_service(
    service: Service, client: Client, files: Files, root: Path, tmp_path: Path
) -> None:
    job = wait_for_success(client, post(service, files, {"samples": 2}).json()["id"])
    client.download_derivative(job, tmp_path / "derivative.zip")
    with zipfile.ZipFile(tmp_path / "derivative.zip") as archive:
        contents = [archive.read(name) for name in archive.namelist()]
    assert not [content for content in contents if str(root).encode() in content]
    result = result_dir(service.settings.artifacts, job)
    assert len(bids_uris(result)) == 2
    assert dead_links(result) == set()
    assert validator_reports(result) == {"own": []}


def test_a_store_at_a_url_is_served_and_gives_the_settings_of_uploads(
    root: Path, files: Files
) -> None:
    settings = settings_in(root, "url", store=(root / "store.zarr").as_uri())
    assert settings.absolute().store == settings.store == f"file://{root}/store.zarr"
    with run_service(settings) as service, Client(service.url) as client:
        wait_for_success(client, client.create_forecast(SUBJECT, samples=2))
        wait_for_success(client, post(service, files, {"samples": 2}).json()["id"])


def test_settings_that_name_no_store_refuse_urls_and_uploads_need_no_configuration(
    root: Path,
) -> None:
    for name in ("bundle", "artifacts", "keys"):
        given = {"bundle": root, "store": root, "artifacts": root, name: "s3://bucket/x"}
        with pytest.raises(ValueError, match=f"{name}\n.*expected a local path, got the URL s3:"):
            ServiceSettings(**given)
    with pytest.raises(ValueError, match="config is an old key; remove it: uploads are prepared"):
        settings_in(root, "old", config=root / "config.yaml")


def test_the_truth_of_a_trial_that_is_not_simulated_is_refused(root: Path) -> None:
    with pytest.raises(ForecastError, match="truth: expected the trial of a store of simulated"):
        mount_model(settings_in(root, "truth", truth=root / "bids"))


def test_an_upload_needs_no_name_no_mask_and_no_compression(
    service: Service, client: Client, files: Files
) -> None:
    plain = {name: (sent, gzip.decompress(content)) for name, (sent, content) in files.items()}
    answer = post(service, plain, {"samples": 2})
    assert answer.status_code == 202, answer.text
    job = wait_for_success(client, answer.json()["id"])
    assert client.result(job)["subject"] == "sub-upload"
    assert client.result(job)["received_arm"] is None


def test_uploaded_files_are_deleted_with_the_forecast(
    service: Service, client: Client, files: Files
) -> None:
    job = post(service, files, {"samples": 2}).json()["id"]
    folder = upload_dir(service.settings.artifacts, job)
    assert folder.is_dir()
    wait_for_success(client, job)
    client.delete(job)
    assert not folder.exists()


def test_a_cancelled_upload_is_removed(service: Service, client: Client, files: Files) -> None:
    service.paused = True
    job = post(service, files, {"samples": 2}).json()["id"]
    client.delete(job)
    service.paused = False
    assert not upload_dir(service.settings.artifacts, job).exists()
    assert client.status(job)["state"] == "cancelled"


def test_an_upload_with_an_idempotency_key_is_accepted_once(service: Service, files: Files) -> None:
    first, again = (post(service, files, {"samples": 2}, key="once") for _ in range(2))
    assert first.headers["Location"] == again.headers["Location"]
    assert uploads(service) >= {first.json()["id"]}
    other = {"w000/flair": files["w048/flair"], "w048/flair": files["w000/flair"]}
    assert_problem(post(service, other, {"samples": 2}, key="once"), 422, "Idempotency-Key")


def test_a_repeated_upload_is_accepted_while_the_queue_is_full(root: Path, files: Files) -> None:
    with run_service(settings_in(root, "full", max_unfinished_forecasts=1)) as service:
        service.paused = True
        first = post(service, files, {"samples": 2}, key="once")
        assert first.status_code == 202
        for key in (None, "another"):
            answer = post(service, files, {"samples": 2}, key=key)
            assert_problem(answer, 429)
            assert int(answer.headers["Retry-After"]) >= 1
        again = post(service, files, {"samples": 2}, key="once")
        assert again.status_code == 202, again.text
        assert again.headers["Location"] == first.headers["Location"]
        assert uploads(service) == {first.json()["id"]}
        service.paused = False


@contextmanager
def stalled_form(service: Service, path: str = "") -> Iterator[socket.socket]:
    """Send the beginning of a form and nothing more."""
    url = httpx2.URL(service.url)
    with socket.create_connection((url.host, url.port)) as to:
        lines = [f"POST /v1/forecasts{path} HTTP/1.1", "Host: localhost", "Content-Length: 1000"]
        lines += ["Content-Type: multipart/form-data; boundary=x", "", "--x"]
        to.sendall("\r\n".join(lines).encode())
        yield to


def test_the_number_of_concurrent_forms_is_limited(
    root: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "MAX_CONCURRENT_FORMS", 2)
    with run_service(settings_in(root, "few")) as service, Client(service.url) as client:
        job = wait_for_success(client, post(service, files, {"samples": 2}).json()["id"])
        with stalled_form(service), stalled_form(service, f"/{job}/segmentation"):
            wait_until(lambda: post(service, files, {"samples": 2}).status_code == 429)
            for url in ("", f"/{job}/segmentation"):
                answer = httpx2.post(f"{service.url}/v1/forecasts{url}", files=files)
                assert_problem(answer, 429)
                assert int(answer.headers["Retry-After"]) >= 1
        wait_until(lambda: post(service, files, {"samples": 2}).status_code == 202)


def test_stalled_upload_times_out_and_frees_its_slot(
    root: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multipart, "MAX_CONCURRENT_FORMS", 1)
    with run_service(settings_in(root, "silent")) as service:
        monkeypatch.setattr(multipart, "FORM_TIMEOUT_S", 0.1)
        with stalled_form(service) as to:
            assert to.recv(100).startswith(b"HTTP/1.1 408 ")
            monkeypatch.setattr(multipart, "FORM_TIMEOUT_S", 60.0)
            assert post(service, files, {"samples": 2}).status_code == 202


@pytest.mark.parametrize(
    "charset", ["undefined", "utf-16", "unicode_escape", "latin-1", "nonsense"]
)
@pytest.mark.parametrize("path", ["", "/segmentation"])
def test_a_form_in_another_charset_than_utf8_is_refused(
    service: Service, client: Client, files: Files, path: str, charset: str
) -> None:
    job = client.create_forecast(SUBJECT, samples=2)
    where = f"/{wait_for_success(client, job)}{path}" if path else ""
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    part = b'--x\r\nContent-Disposition: form-data; name="\\ud800"\r\n\r\na\r\n--x--\r\n'
    url = f"{service.url}/v1/forecasts{where}"
    answer = httpx2.post(url, content=part, headers={"Content-Type": kind}, timeout=60)
    assert_problem(answer, 415, "Content-Type")


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b"", b"\x00", b"a" * 999]
)
def test_unusual_field_names_are_refused(service: Service, name: bytes) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\na\r\n--x--\r\n' % name
    kind = {"Content-Type": 'multipart/form-data; boundary=x; charset="UTF-8"'}
    assert httpx2.post(f"{service.url}/v1/forecasts", content=part, headers=kind).status_code in (
        400,
        422,
    )


def test_a_forecast_of_an_upload_continues_after_a_restart(root: Path, files: Files) -> None:
    settings = settings_in(root, "restart")
    with run_service(settings) as first, Client(first.url) as client:
        first.budget = 4
        job = post(first, files, {"samples": 4}).json()["id"]
        wait_until(lambda: client.status(job)["progress"] == {"done": 8, "total": 12})
    with run_service(settings) as second, Client(second.url) as client:
        wait_for_success(client, job)
        assert len(second.drawn) == 2


def post(
    service: Service, files: Files, request: object = None, *, key: str | None = None
) -> httpx2.Response:
    return httpx2.post(
        f"{service.url}/v1/forecasts",
        files=files,
        data={} if request is None else {"request": json.dumps(request)},
        headers={} if key is None else {"Idempotency-Key": key},
        timeout=60,
    )


def uploads(service: Service) -> set[str]:
    return {path.name for path in (service.settings.artifacts / "uploads").glob("*")}


def image(content: bytes, change: Callable[[np.ndarray, nib.Nifti1Header], np.ndarray]) -> bytes:  # type: ignore[type-arg]
    """Return an image with other voxels or another header."""
    loaded = nib.Nifti1Image.from_bytes(gzip.decompress(content))
    header = loaded.header.copy()
    voxels = change(np.asarray(loaded.dataobj).copy(), header)
    edited = nib.Nifti1Image(voxels, loaded.affine, header)
    return gzip.compress(edited.to_bytes(), mtime=0)


def claiming(shape: tuple[int, int, int], voxels: int) -> bytes:
    """Return a gzipped image whose header states a shape, with `voxels` bytes of zeros."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(np.uint8)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed:
        packed.write(header.binaryblock + bytes(4))
        for _ in range(voxels // 2**16):
            packed.write(bytes(2**16))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "spoil", "status"),
    [
        ("w048/flair", None, 422),
        ("w000/flair", lambda _: b"", 422),
        ("w000/flair", lambda _: b"no image", 422),
        ("w000/flair", lambda content: content[:-40], 422),
        ("w000/flair", lambda content: image(content, lambda v, _: v[:, :, 1:]), 422),
        ("w048/flair", lambda content: image(content, lambda v, _: v * 0), 422),
        ("w048/flair", lambda _: claiming((8000, 8000, 8000), 0), 422),  # a header bomb
        ("w048/flair", lambda _: claiming((1024, 1024, 8), 2**23), 413),  # bombs of gzip, honest
        ("w048/flair", lambda _: claiming((32, 32, 32), 2**24), 422),  # and not
        ("w000/t2", lambda _: bytes(60_000), 413),
    ],
)  # fmt: skip
def test_an_unusable_image_names_its_field(
    service: Service,
    files: Files,
    name: str,
    spoil: Callable[[bytes], bytes] | None,
    status: int,
) -> None:
    before = uploads(service)
    content = files.pop(name, ("", b""))[1]
    if spoil is not None:
        files[name] = ("image.nii.gz", spoil(content))
    problem = assert_problem(post(service, files), status, name)
    assert name in problem["detail"]
    assert str(service.settings.artifacts) not in problem["detail"]
    assert uploads(service) == before


@pytest.mark.parametrize(
    ("request_body", "field"),
    [
        ({"subject": "sub-../../x"}, "subject"),
        ({"subject": "Doe^John"}, "subject"),
        ({"samples": 1}, "samples"),
        ({"arms": ["homeopathy"]}, "arms.0"),
        ({"covariates": {"age": 40}}, "covariates.age"),
        ({"covariates": {"age": "40\tplacebo"}}, "covariates.age"),
        ("no object", "body"),
    ],
)
def test_an_invalid_request_of_an_upload_names_the_field(
    service: Service, files: Files, request_body: object, field: str
) -> None:
    problem = post(service, files, request_body).json()
    assert problem["status"] == 422
    assert field in [error["field"] for error in problem["errors"]]


@pytest.mark.parametrize("entry", SENDABLE, ids=lambda entry: entry.name)
def test_a_corrupt_image_is_refused_with_the_reason_of_the_conversion(
    covariate_service: Service, tmp_path: Path, entry: Corruption
) -> None:
    before = uploads(covariate_service)
    write_subject(tmp_path, SUBJECT, geometry=CORRUPTED_GEOMETRY, seed=1)
    entry.harm(tmp_path, SUBJECT)
    paths = {name: path_of(tmp_path, SUBJECT, *name.split("/")) for name in SENT}
    files = {name: ("image", path.read_bytes()) for name, path in paths.items()}
    problem = assert_problem(post(covariate_service, files), 422)
    assert problem["errors"][0]["field"] in SENT
    assert all(words in problem["detail"] for words in entry.words), problem["detail"]
    assert str(covariate_service.settings.artifacts) not in problem["detail"]
    assert uploads(covariate_service) == before


@pytest.mark.parametrize("compression", [None, 1])
def test_one_image_in_both_flair_fields_is_refused(
    service: Service, files: Files, compression: int | None
) -> None:
    name, content = files["w048/flair"]
    if compression is not None:
        content = gzip.compress(gzip.decompress(content), compression)
    answer = post(service, files | {"w000/flair": (name, content)}, {"samples": 2})
    detail = assert_problem(answer, 422, "w048/flair")["detail"]
    assert "w048/flair: expected a scan of w048, got the voxels of w000" in detail


@pytest.fixture(scope="module")
def covariate_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service whose model takes covariates."""
    folder = tmp_path_factory.mktemp("covariates")
    covariates = (Covariate("age", centre=40.0, scale=10.0), Covariate("sex", levels=("F", "M")))
    write_trial_served(folder, unlabelled=SUBJECT, covariates=covariates)
    with run_service(trial_settings(folder, folder / "out")) as service:
        yield service


def test_covariates_of_an_upload_count_as_those_of_the_store(
    covariate_service: Service, images: dict[str, Path]
) -> None:
    with Client(covariate_service.url) as client:

        def forecast(**given: Any) -> dict[str, Any]:
            return client.result(
                wait_for_success(client, client.create_forecast(SUBJECT, samples=8, **given))
            )

        stored = forecast()
        same = forecast(images=images, covariates={"age": 32, "sex": "F"})
        another = forecast(
            images=images, covariates={"age": 90.5, "sex": "M", "days_to_current": 90}
        )
        older = forecast(images=images, covariates={"age": 32.0, "sex": None})
        unknown = forecast(images=images)
    assert same == stored
    assert same["covariates"] == another["covariates"] == {"used": ["age", "sex"], "missing": []}
    assert older["covariates"] == {"used": ["age"], "missing": ["sex"]}
    assert unknown["covariates"] == {"used": [], "missing": ["age", "sex"]}
    assert same["arms"] != another["arms"]
    assert any(" is 90 days after " in warning["text"] for warning in another["warnings"])
    model = httpx2.get(f"{covariate_service.url}/v2/models/lesioncast").json()
    assert {"name": "age", "datatype": "FP32", "shape": [1]} in model["inputs"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("age", "forty", "a finite number"),
        ("age", "40", "a finite number"),
        ("age", True, "a finite number"),
        ("age", [40], "a finite number"),
        ("age", math.nan, "a finite number"),
        ("age", 1e39, "a finite number"),
        ("age", -1e30, "a finite number"),
        ("age", 10**20, "a finite number"),
        ("age", 10**4000, "a finite number"),
        ("sex", "male", "one of F, M, got male"),
        ("sex", 1, "one of F, M, got 1"),
        ("sex", "F\tplacebo", "one of F, M"),
        ("sex", "F" * 65, "a word of at most 64"),
        ("days_to_current", 0, "days from 0 to 36525, got 0"),
        ("days_to_outcome", "soon", "days from 0 to 36525, got soon"),
        ("height", 1.8, "some of age, sex, got height"),
    ],
)
def test_an_unusable_covariate_names_its_field(
    covariate_service: Service, files: Files, name: str, value: object, expected: str
) -> None:
    answer = post(covariate_service, files, {"covariates": {name: value}})
    assert expected in assert_problem(answer, 422, f"covariates.{name}")["detail"]


def test_unknown_repeated_and_mistyped_fields_are_refused(service: Service, files: Files) -> None:
    spare = files["w000/flair"]
    assert_problem(post(service, files | {"w096/flair": spare}), 422, "w096/flair")
    assert_problem(post(service, files | {"request": ("request.json", b"{}")}), 422, "request")
    problem = assert_problem(post(service, files | {"order": ("order.json", b"{}")}), 422, "order")
    assert problem["detail"] == "order: this field is now called request."
    url = f"{service.url}/v1/forecasts"
    twice = [("w000/flair", spare), ("w000/flair", spare)]
    assert_problem(httpx2.post(url, files=twice), 422, "w000/flair")
    answer = httpx2.post(url, files={"w048/flair": spare}, data={"w000/flair": "text"})
    assert_problem(answer, 422, "w000/flair")
    assert_problem(
        httpx2.post(url, content=b"--x", headers={"Content-Type": "multipart/form-data"}), 400
    )
    assert_problem(httpx2.post(url, data={"subject": SUBJECT}), 415, "Content-Type")


def test_a_form_above_the_limit_is_refused_before_it_is_read(service: Service) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with socket.create_connection(
        (httpx2.URL(service.url).host, httpx2.URL(service.url).port)
    ) as to:
        lines = ["POST /v1/forecasts HTTP/1.1", "Host: localhost", "Content-Length: 200001"]
        lines += [f"Content-Type: {kind['Content-Type']}", "", ""]
        to.sendall("\r\n".join(lines).encode())  # and no more
        assert to.recv(100).startswith(b"HTTP/1.1 413 ")

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="w000/flair"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield bytes(10_000)

    assert_problem(httpx2.post(f"{service.url}/v1/forecasts", content=endless(), headers=kind), 413)


def test_an_upload_without_a_forecast_is_removed_by_age(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(root, "died")
    folder = upload_dir(settings.artifacts, "f" * 32)
    folder.mkdir(parents=True)
    assert stale_uploads(settings.artifacts) == []
    monkeypatch.setattr("serve.artifacts.ORPHAN_AGE_SECONDS", -ORPHAN_AGE_SECONDS)
    with run_service(settings):
        wait_until(lambda: not folder.exists())


def test_forms_from_pages_of_other_sites_are_refused_in_demo_mode(
    service: Service, files: Files
) -> None:
    url = f"{service.url}/v1/forecasts"
    answer = httpx2.post(url, files=files, headers={"Origin": "https://evil.example"})
    assert_problem(answer, 403)
