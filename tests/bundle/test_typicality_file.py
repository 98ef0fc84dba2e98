"""The reference of typicality lies beside its bundle, and is of that bundle alone."""

from pathlib import Path

import numpy as np
import pytest

from lesioncast.bundle.typicality import TYPICALITY_FILE, read_typicality, write_typicality
from lesioncast.errors import BundleError
from lesioncast.imaging.features.patient_features import PATIENT_FEATURES
from lesioncast.imaging.typicality import TypicalityReference, fit_gaussian

DIGEST = "d" * 64


def reference() -> TypicalityReference:
    rng = np.random.default_rng(0)
    features, arm = rng.standard_normal((40, len(PATIENT_FEATURES))), np.arange(40) % 2
    features[3, 5] = np.nan
    return TypicalityReference(
        fit_gaussian(features, arm, arms=3), features.astype(np.float32), arm
    )


def test_a_reference_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_typicality(tmp_path, DIGEST) is None
    written = reference()
    write_typicality(tmp_path, DIGEST, written)
    found = read_typicality(tmp_path, DIGEST)
    assert found is not None
    for name, array in vars(written.gaussian).items():
        assert np.array_equal(getattr(found.gaussian, name), array, equal_nan=True)
    assert np.array_equal(found.ranked, written.ranked, equal_nan=True)
    assert np.array_equal(found.arm, written.arm)


def test_the_reference_of_another_bundle_is_refused(tmp_path: Path) -> None:
    write_typicality(tmp_path, DIGEST, reference())
    with pytest.raises(BundleError, match="expected the reference of bundle 000000000000"):
        read_typicality(tmp_path, "0" * 64)


def test_a_damaged_reference_is_refused(tmp_path: Path) -> None:
    (tmp_path / TYPICALITY_FILE).write_bytes(b"no tensors")
    with pytest.raises(BundleError, match=r"typicality.safetensors: expected a reference, got"):
        read_typicality(tmp_path, DIGEST)
