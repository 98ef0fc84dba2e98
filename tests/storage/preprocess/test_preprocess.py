"""Preprocess one subject: stored voxels, and inputs that may be absent."""

from pathlib import Path

import numpy as np
import pytest

from storage.errors import CaseError
from storage.layout import CHANNELS, MASKS, SESSIONS
from storage.preprocess.prepare import CaseArrays, CaseMetadata, preprocess_subject
from storage.settings import StoreSettings, TrialLayout
from storage.trial.dataset import scan_trial
from tests.support import bids

SETTINGS = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False)


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    bids.write_trial(tmp_path, 2)
    return tmp_path


def preprocess(
    trial: Path, name: str = "sub-02", settings: StoreSettings = SETTINGS
) -> tuple[CaseMetadata, CaseArrays]:
    (subject,) = (s for s in scan_trial(trial, settings.layout) if s.name == name)
    return preprocess_subject(subject, trial, settings=settings, arms=bids.ARMS)


def test_other_spacing_is_refused_without_resampling(trial: Path) -> None:
    settings = StoreSettings((5, 12, 16), (3.0, 1.5, 1.5), resample=False)
    with pytest.raises(CaseError, match=r"expected .* spacing \(3.0, 1.5, 1.5\) mm, got \(3, "):
        preprocess(trial, settings=settings)
    resampled = StoreSettings((5, 12, 16), (3.0, 1.5, 1.5), resample=True)
    metadata, _ = preprocess(trial, settings=resampled)
    assert not metadata.grid.is_crop


def test_complete_case_is_stored_voxel_by_voxel(tmp_path: Path) -> None:
    volumes = bids.write_trial(tmp_path, 2)["sub-02"]
    metadata, arrays = preprocess(tmp_path)
    s, h = (
        slice(int(o), int(o) + n) for o, n in zip(metadata.grid.offset[:2], (5, 12), strict=True)
    )
    for (session, channel), volume in volumes.items():
        if channel in MASKS:
            stored = arrays.masks[SESSIONS.index(session), MASKS.index(channel)]
            np.testing.assert_array_equal(stored[:, :, 1:15], volume[s, h])
            assert not stored[:, :, [0, 15]].any()
    cortex = np.isin(volumes["w048", "parcellation"][s, h], (3, 42, 1007, 2035))
    np.testing.assert_array_equal(np.isin(arrays.parcellation, (3, 42))[:, :, 1:15], cortex)
    assert arrays.flair.dtype == np.float16
    assert arrays.flair.min() == -1
    assert arrays.flair.max() == 1
    outside = volumes["w048", "flair"][s, h] == 0
    assert (arrays.flair[1][:, :, 1:15][outside] == -1).all()
    assert metadata.covariates == {"age": 31, "sex": "F", "edss": None}
    assert (metadata.arm, metadata.trial) == ("avonex", "OPERA")
    assert len(metadata.digests) == len(volumes)


@pytest.mark.parametrize(
    ("cell", "value"),
    [("9" * 20, 10**20 - 1), ("9" * 400, None), ("9" * 5000, None), ("1e999", None)],
)
def test_numbers_beyond_float_range_become_unknown(
    trial: Path, cell: str, value: int | None
) -> None:
    table = trial / "participants.tsv"
    table.write_text(table.read_text().replace("\t31\t", f"\t{cell}\t"))
    assert preprocess(trial)[0].covariates["age"] == value


def test_optional_inputs_may_be_absent(trial: Path) -> None:
    bids.write_participants(trial, {"sub-01": "placebo", "sub-02": "n/a"})
    for session in SESSIONS:
        for channel in (*MASKS, "parcellation"):
            bids.path_of(trial, "sub-02", session, channel).unlink(missing_ok=True)
    bids.path_of(trial, "sub-02", "w096", "flair").unlink()
    metadata, arrays = preprocess(trial)
    flair = CHANNELS.index("flair")
    assert arrays.present[:, flair].tolist() == [True, True, False]
    assert np.count_nonzero(arrays.present) == 2
    assert metadata.arm is None
    assert not metadata.parcellation
    assert not arrays.masks.any()
    assert not arrays.parcellation.any()


def test_brain_mask_removes_the_skull(trial: Path) -> None:
    path = bids.path_of(trial, "sub-02", "w048", "brain_mask")
    geometry = bids.Geometry()
    brain = np.zeros(geometry.shape, np.uint8)
    brain[2:7, 6:15, 4:10] = 1
    bids.write_volume(path, brain, geometry)
    metadata, arrays = preprocess(trial)
    assert (arrays.flair > -1).any(axis=(0, 1, 2)).sum() == 6
    kept = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False, apply_brain_mask=False)
    _, arrays = preprocess(trial, settings=kept)
    assert (arrays.flair > -1).any(axis=(0, 1, 2)).sum() > 6
    assert path.relative_to(trial).as_posix() in metadata.digests


def test_layout_maps_session_labels_and_arm_column(trial: Path) -> None:
    for path in sorted(trial.rglob("*ses-w*"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.replace("ses-w048", "ses-M12")))
    layout = TrialLayout(sessions=("w000", "M12", "w096"), arm_column="trial")
    settings = StoreSettings((5, 12, 16), (3.0, 2.0, 2.0), resample=False, layout=layout)
    (subject, _) = scan_trial(trial, layout)
    metadata, arrays = preprocess_subject(subject, trial, settings=settings, arms=("OPERA",))
    assert metadata.arm == "OPERA"
    assert arrays.present[1].all()
