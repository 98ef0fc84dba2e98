"""DICOM SEG over HTTP: every voxel of a forecast has its place in the series of the client."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import httpx2
import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian

from lesioncast.forecasting.output.bids import forecast_path
from serve.api.routes.segmentation import MAX_HEADER_BYTES
from serve.artifacts import result_dir
from serve.client import Client
from tests.support.bids import ARMS
from tests.support.dicom import values_at, write_series
from tests.support.forecast import GEOMETRY
from tests.support.service import (
    Service,
    assert_problem,
    run_service,
    trial_settings,
    wait_for_success,
    write_trial_served,
)

SUBJECT = "sub-03"
Sent = list[tuple[str, tuple[str, bytes]]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("dicom")
    # A SEG cannot say that a grid is sheared, as that of the other tests is.
    write_trial_served(root, unlabelled=SUBJECT, geometry=replace(GEOMETRY, tilt=0))
    with run_service(trial_settings(root, root / "out")) as service:
        yield service


@pytest.fixture(scope="module")
def job(service: Service) -> str:
    with Client(service.url) as client:
        return wait_for_success(client, client.create_forecast(SUBJECT, samples=4))


@pytest.fixture(scope="module")
def maps(
    service: Service, job: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, nib.Nifti1Image]:
    """Return the probability map of each arm."""
    folder = tmp_path_factory.mktemp("maps")
    with Client(service.url) as client:
        for arm in ARMS:
            client.download_probability_map(job, arm, folder / f"{arm}.nii.gz")
    return {arm: nib.load(folder / f"{arm}.nii.gz") for arm in ARMS}


@pytest.fixture
def series(maps: dict[str, nib.Nifti1Image], tmp_path: Path) -> Path:
    """Write the series that the FLAIR was made from, with slices along the last NIfTI axis."""
    image = maps[ARMS[0]]
    return write_series(tmp_path / "series", image.affine[:, [2, 1, 0, 3]], image.shape[::-1])


def sent(series: Path) -> Sent:
    paths = sorted(series.iterdir())
    return [("series", ("../../etc/passwd", path.read_bytes())) for path in paths]


def post(service: Service, job: str, files: Sent, **params: object) -> httpx2.Response:
    url = f"{service.url}/v1/forecasts/{job}/segmentation"
    return httpx2.post(url, files=files, params=params, timeout=60)


def by_arm(path: Path) -> dict[str, int]:
    """Return the number of each arm's segment."""
    segments = dcmread(path).SegmentSequence
    return {segment.SegmentLabel.rpartition(", ")[2]: segment.SegmentNumber for segment in segments}


def test_a_segmentation_lies_on_the_series_of_the_patient(
    client: Client, job: str, maps: dict[str, nib.Nifti1Image], series: Path, tmp_path: Path
) -> None:
    client.download_segmentation(job, series, tmp_path / "seg.dcm")
    numbers = by_arm(tmp_path / "seg.dcm")
    assert set(numbers) == set(ARMS)
    for arm, image in maps.items():
        values = values_at(tmp_path / "seg.dcm", image, segment=numbers[arm])
        np.testing.assert_allclose(values, image.get_fdata(), atol=0.501 / 255)
    assert max(image.get_fdata().max() for image in maps.values()) > 0
    segmentation, source = dcmread(tmp_path / "seg.dcm"), dcmread(next(series.iterdir()))
    assert segmentation.StudyInstanceUID == source.StudyInstanceUID
    assert "research use only" in segmentation.SeriesDescription


def test_a_threshold_gives_binary_masks(
    client: Client, job: str, maps: dict[str, nib.Nifti1Image], series: Path, tmp_path: Path
) -> None:
    client.download_segmentation(job, series, tmp_path / "seg.dcm", threshold=0.5)
    assert dcmread(tmp_path / "seg.dcm").SegmentationType == "BINARY"
    for arm, number in by_arm(tmp_path / "seg.dcm").items():
        values = values_at(tmp_path / "seg.dcm", maps[arm], segment=number)
        np.testing.assert_array_equal(values, maps[arm].get_fdata() >= 0.5)


def test_the_pixels_of_the_series_may_be_left_out(service: Service, job: str, series: Path) -> None:
    whole = made_of(post(service, job, sent(series)))

    def without_pixels(image: Dataset) -> None:
        del image.PixelData

    change(series, lambda image: setattr(image, "PixelData", bytes(2 * MAX_HEADER_BYTES)))
    longer = made_of(post(service, job, sent(series)))
    change(series, without_pixels)
    shorter = made_of(post(service, job, sent(series)))
    assert whole.SOPInstanceUID == longer.SOPInstanceUID == shorter.SOPInstanceUID
    assert whole.PixelData == longer.PixelData == shorter.PixelData


def made_of(answer: httpx2.Response) -> Dataset:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    return dcmread(BytesIO(answer.content))


def change(series: Path, edit: Callable[[Dataset], None], *, alone: bool = False) -> None:
    """Edit all files of a series, or only the first."""
    for path in sorted(series.iterdir())[: 1 if alone else None]:
        image = dcmread(path)
        edit(image)
        image.save_as(path)


@pytest.mark.parametrize("empty", [1, len(ARMS)])
@pytest.mark.parametrize("threshold", [None, 0.25])
@pytest.mark.parametrize("rest", [0.0, 0.001])  # the second is less than half a step of 1 / 255
def test_a_segment_of_an_empty_map_has_a_frame(
    service: Service, series: Path, tmp_path: Path, empty: int, threshold: float | None, rest: float
) -> None:
    """Viewers wait forever for the first frame of a segment that has none."""
    with Client(service.url) as client:
        job = wait_for_success(client, client.create_forecast(SUBJECT, samples=2))
    maps = {}
    for number, arm in enumerate(ARMS):
        path = forecast_path(result_dir(service.settings.artifacts, job), SUBJECT, arm)
        image = nib.load(path)
        values = np.zeros(image.shape, np.float32)
        values[2:4, 3:6, 1:3] = rest if number < empty else 0.5
        maps[arm] = nib.Nifti1Image(values, image.affine)
        nib.save(maps[arm], path)
    params = {} if threshold is None else {"threshold": threshold}
    seg = made_of(post(service, job, sent(series), **params))
    frames = {int(segment.SegmentNumber): 0 for segment in seg.SegmentSequence}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        frames[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += 1
    assert len(frames) == len(ARMS)
    assert all(0 < number <= 2 for number in frames.values())
    seg.save_as(tmp_path / "seg.dcm")
    for arm, number in by_arm(tmp_path / "seg.dcm").items():
        values = values_at(tmp_path / "seg.dcm", maps[arm], segment=number)
        right = maps[arm].get_fdata()
        right = right if threshold is None else right >= threshold
        np.testing.assert_allclose(values, right, atol=0.5 / 255)


@pytest.mark.parametrize(
    ("character_sets", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (["ISO 2022 IR 100", "ISO 2022 IR 87"], "Müller^Jürgen=山田^太郎"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "山田^太郎"),
        ("", "Plain^Name"),
    ],
)
def test_the_patients_name_is_kept_in_its_character_sets(
    service: Service, job: str, series: Path, character_sets: list[str] | str, name: str
) -> None:
    def rename(image: Dataset) -> None:
        image.SpecificCharacterSet, image.PatientName = character_sets, name

    with warnings.catch_warnings():  # pydicom checks the length of names in bytes
        warnings.simplefilter("ignore")
        change(series, rename)
        seg = made_of(post(service, job, sent(series)))
    assert str(seg.PatientName) == name
    assert (seg.get("SpecificCharacterSet") or "") == character_sets


def test_a_misspelt_character_set_is_read_and_written_as_utf8(
    service: Service, job: str, series: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(series, lambda image: setattr(image, "PatientName", "Müller"))
        change(series, lambda image: setattr(image, "SpecificCharacterSet", "ISO IR 100"))
        seg = made_of(post(service, job, sent(series)))
    assert (str(seg.PatientName), seg.SpecificCharacterSet) == ("Müller", "ISO_IR 192")


def without(name: str) -> Callable[[Path], None]:
    return lambda series: change(series, lambda image: delattr(image, name))


def elsewhere(image: Dataset) -> None:
    x, y, z = image.ImagePositionPatient
    image.ImagePositionPatient = [x + 2, y, z]


def another_series(image: Dataset) -> None:
    image.SeriesInstanceUID = "1.2"


def bomb(image: Dataset) -> None:
    """Make a file of a few kB that unpacks to 64 MB."""
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.PixelData = bytes(2**26)


def broken(series: Path) -> None:
    """Give the transfer syntax a value representation that does not exist."""
    first = min(series.iterdir())
    first.write_bytes(first.read_bytes().replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x10\x00!?"))


def all_of(content: bytes) -> Callable[[Path], None]:
    return lambda series: [path.write_bytes(content) for path in series.iterdir()]  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda series: change(series, elsewhere), "corners within 0.1 mm"),
        (lambda series: change(series, another_series, alone=True), "images of one series"),
        (lambda series: change(series, bomb, alone=True), "series/0001: .* not deflated"),
        (lambda series: sorted(series.iterdir())[3].unlink(), "slices at even steps"),
        (without("PatientID"), "complete headers .*PatientID"),
        (without("PixelSpacing"), "complete headers .*PixelSpacing"),
        (broken, "series/0001: expected DICOM, got a broken file"),
        (all_of(b"no image"), "images of one series"),
        (all_of(b""), "images of one series"),
    ],
)
def test_an_unsuitable_series_is_refused_with_the_reason(
    service: Service, job: str, series: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(series)
    problem = assert_problem(post(service, job, sent(series)), 422, "series")
    assert re.search(reason, problem["detail"])
    assert "/tmp" not in problem["detail"]


def test_wrong_bodies_of_a_segmentation_name_the_field(
    service: Service, job: str, series: Path
) -> None:
    files, url = sent(series), f"{service.url}/v1/forecasts/{job}/segmentation"
    assert_problem(httpx2.post(url, json={}), 415, "Content-Type")
    assert_problem(httpx2.post(url, files=files, data={"series": "text"}), 422, "series")
    assert_problem(post(service, job, [("images", files[0][1])]), 422, "images")
    for threshold in ("0", "1.5", "nan", "half"):
        assert_problem(post(service, job, files, threshold=threshold), 422, "threshold")


def test_a_forecast_without_a_result_has_no_segmentation(
    service: Service, client: Client, series: Path
) -> None:
    assert_problem(post(service, "0" * 32, sent(series)), 404, "id")
    service.paused = True
    unfinished = client.create_forecast(SUBJECT, samples=2)
    assert "Retry-After" in post(service, unfinished, sent(series)).headers
    assert_problem(post(service, unfinished, sent(series)), 409)
    client.delete(unfinished)
    service.paused = False


def test_without_the_extra_dicom_a_segmentation_is_501(
    service: Service, job: str, series: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "storage.export.dicom_series",
        "storage.export.dicom_seg",
        "lesioncast.forecasting.output.dicom_seg",
    ):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    problem = assert_problem(post(service, job, sent(series)), 501)
    assert "extra dicom" in problem["detail"]
