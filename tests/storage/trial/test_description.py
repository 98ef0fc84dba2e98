"""Read what a trial says about itself."""

import json
from pathlib import Path

import pytest

from storage import StorageError
from storage.trial.description import TrialDescription, read_description
from tests.storage.convert.conversion import GEOMETRY, converted
from tests.support import bids


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe{\0}\0", b'"text"'])
def test_a_damaged_description_of_a_trial_is_named(tmp_path: Path, content: bytes) -> None:
    bids.write_trial(tmp_path / "bids", 1, geometry=GEOMETRY)
    (tmp_path / "bids/dataset_description.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"dataset_description.json: expected .*, got .* remove"):
        converted(tmp_path / "bids", tmp_path / "store.zarr")


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({}, TrialDescription()),
        ({"Name": 7, "SimulatedWith": None}, TrialDescription()),
        ({"Name": "X", "SimulatedWith": False}, TrialDescription("X")),
        ({"SimulatedWith": "another simulator"}, TrialDescription(None, simulated=True)),
    ],
)
def test_a_trial_is_simulated_if_its_description_says_so(
    tmp_path: Path, description: dict[str, object], expected: TrialDescription
) -> None:
    assert read_description(tmp_path) == TrialDescription()
    (tmp_path / "dataset_description.json").write_text(json.dumps(description))
    assert read_description(tmp_path) == expected
