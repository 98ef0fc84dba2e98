"""The bundle that comes with lesioncast is intact, small, evaluated on a fresh trial, described."""

import pytest

from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.bundle.evaluation_card import CARD, EVALUATION, read_evaluation_card
from lesioncast.bundle.pretrained import FOLDER
from lesioncast.bundle.typicality import TYPICALITY_FILE, read_typicality
from lesioncast.evaluation.reporting.monai_metadata import METADATA, Metadata, read_metadata
from lesioncast.jobs.publish import MAX_MB, STAGES, TRAINING_LOG, commands_of
from tests.architecture.tree import ROOT, tracked

# Version of the bundle in platform/lesioncast/pretrained. Whoever ships a bundle sets it. None says
# that this tree ships no bundle yet, and then none may lie there.
VERSION: str | None = None
# The history of the repository keeps every bundle, so it may be replaced twice.
MAX_VERSIONS = 3
MIN_TEST_CASES = 1000


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    if VERSION is None:
        assert not FOLDER.exists(), f"set VERSION to that of {FOLDER / METADATA}"
        pytest.skip("THIS TREE SHIPS NO BUNDLE: `--bundle pretrained` and `make serve` need one")
    return load_bundle(FOLDER)


@pytest.fixture(scope="module")
def metadata(bundle: Bundle) -> Metadata:
    return read_metadata(FOLDER)


def test_the_card_is_about_this_bundle_and_version(bundle: Bundle, metadata: Metadata) -> None:
    assert metadata.bundle == bundle.digest
    assert metadata.version == VERSION == next(iter(metadata.changelog))
    assert len(metadata.changelog) <= MAX_VERSIONS


def test_it_was_evaluated_on_a_fresh_trial(bundle: Bundle, metadata: Metadata) -> None:
    card = read_evaluation_card(FOLDER, bundle.digest)
    assert card is not None
    assert card.test_cases == metadata.evaluation.test_cases >= MIN_TEST_CASES
    assert bundle.calibration is not None
    assert card.store == metadata.evaluation.store != bundle.calibration.cohort.store
    assert read_typicality(FOLDER, bundle.digest) is not None


def test_it_says_that_its_patients_are_simulated(bundle: Bundle, metadata: Metadata) -> None:
    assert bundle.config.simulated
    for text in (metadata.description, metadata.intended_use):
        assert "simulated patients alone" in text


def test_its_log_has_the_commands_of_the_card_and_ends_in_this_bundle(
    bundle: Bundle, metadata: Metadata
) -> None:
    path = FOLDER / TRAINING_LOG
    log = path.read_text(encoding="utf-8")
    assert commands_of(log, [path]) == metadata.commands
    assert set(metadata.stages) == set(STAGES)
    assert f"({bundle.digest[:12]})" in log


def test_it_is_small_and_all_of_it_is_in_the_repository(bundle: Bundle) -> None:
    files = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert sum(files.values()) <= MAX_MB * 10**6
    assert {METADATA, CARD, EVALUATION, TYPICALITY_FILE, TRAINING_LOG} <= set(files)
    folder = FOLDER.relative_to(ROOT)
    assert {path.name for path in tracked() if path.parent == folder} == set(files)
