"""Mistakes of users end in a sentence, not in a traceback."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesioncast.bundle.evaluation_card import EVALUATION, read_evaluation_card
from lesioncast.config import load_config
from lesioncast.errors import (
    ConfigError,
    EvaluationCardError,
    EvaluationReportError,
    ForecastError,
)
from lesioncast.evaluation.reporting.json_io import read_report
from lesioncast.forecasting.output.bids import forecast_path, new_map_path, read_maps
from lesioncast.jobs import export as export_job
from storage import SESSIONS
from storage.export.bids_derivative import sidecar_path
from storage.export.bids_names import DerivedNames
from tests.storage.convert.conversion import GEOMETRY, converted
from tests.support import bids

DEMO = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.yaml"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_conversion_goes_on_without_file_locks_and_says_so(
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    bids.write_trial(tmp_path / "bids", 1, geometry=GEOMETRY)
    store, _ = converted(tmp_path / "bids", tmp_path / "store.zarr")
    assert len(store.cases) == 1
    assert "store.zarr: its file system has no file locks" in caplog.text


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ("[placebo, IFN-a, ifna]", "differ in letters and digits, got 'IFN-a' and 'ifna'"),
        ("[placebo, beta 1, beta_1]", "got 'beta 1' and 'beta_1'; rename one"),
        ("[placebo, '--']", "names with letters or digits of ASCII, got '--'"),
    ],
)
def test_arms_that_would_share_a_file_are_refused(arms: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(DEMO, [f"arms={arms}"])
    assert words in str(caught.value)


MALFORMED: tuple[bytes, ...] = (b"", b"{", b"[]", b"\xff\xfe{\0}\0", b'"text"')


@pytest.mark.parametrize("content", MALFORMED)
def test_malformed_evaluation_files_are_named(tmp_path: Path, content: bytes) -> None:
    for read, name, kind in (
        (read_report, "metrics.json", EvaluationReportError),
        (lambda path: read_evaluation_card(path.parent, "0" * 64), EVALUATION, EvaluationCardError),
    ):
        (tmp_path / name).write_bytes(content)
        reader: Callable[[Path], Any] = read
        with pytest.raises(kind, match=rf"{name}: expected .*; run jobs/evaluate\.py again"):
            reader(tmp_path / name)


def test_missing_evaluation_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationReportError, match=r"metrics\.json: expected an evaluation rep"):
        read_report(tmp_path / "metrics.json")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{"])
def test_malformed_sidecar_of_a_forecast_is_named(tmp_path: Path, content: bytes) -> None:
    names = DerivedNames("sub-01", {}, dict(zip(SESSIONS, SESSIONS, strict=True)))
    path = new_map_path(tmp_path, names, "placebo")
    bids.write_volume(path, np.zeros(GEOMETRY.shape, np.float32), GEOMETRY)
    sidecar_path(path).write_bytes(content)
    with pytest.raises(ForecastError, match=r"expected a probability map with a sidecar, got"):
        forecast_path(tmp_path, "sub-01", "placebo")
    with pytest.raises(ForecastError, match=r"expected a probability map with a sidecar, got"):
        read_maps(tmp_path, "sub-01")


@pytest.mark.parametrize("flag", ["--out", "--dicom", "--forecasts"])
def test_url_given_to_export_for_a_local_folder_is_refused(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        export_job.main(["--config", str(DEMO), flag, "s3://bucket/folder"])
    assert f"argument {flag}: expected a local path, got the URL s3://bucket" in (
        capsys.readouterr().err
    )


def test_store_of_export_may_be_a_url(caplog: pytest.LogCaptureFixture) -> None:
    assert export_job.main(["--config", str(DEMO), "--store", "nowhere://bucket/store"]) == 1
    assert "nowhere://bucket/store: expected the URL of an object store" in caplog.text
