"""`lesioncast calibrate` writes a bundle of the same weights with another calibration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.description import bundle_digest
from lesioncast.bundle.evaluation_card import (
    CARD,
    EvaluationCard,
    read_evaluation_card,
    write_evaluation_card,
)
from lesioncast.bundle.typicality import read_typicality, write_typicality
from lesioncast.jobs.calibrate import main
from lesioncast.training.data.typicality import fit_typicality
from lesioncast.warning_list import warn
from storage import Store
from tests.support.forecast import SETTINGS, write_bundle, write_store

OTHER = replace(SETTINGS, apply_brain_mask=not SETTINGS.apply_brain_mask)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_store(tmp_path / "store.zarr", tmp_path / "bids", test=10)


def run(folder: Path, *, bundle: str = "bundle", output: str = "new", split: str = "test") -> int:
    paths = [str(folder / bundle), str(folder / "store.zarr"), "--output", str(folder / output)]
    return main([*paths, "--split", split])


def test_the_new_bundle_has_the_same_weights_and_names_its_parent(
    tmp_path: Path, store: Store
) -> None:
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4))
    assert run(tmp_path) == 0
    parent, new = load_bundle(tmp_path / "bundle"), load_bundle(tmp_path / "new")
    assert parent.calibration is None
    assert new.digest != parent.digest
    assert new.calibration.parent == parent.digest
    assert new.calibration.cohort.name == "10 test cases of A made-up trial"
    assert new.config == parent.config
    weights = (bundle.model.control.state_dict() for bundle in (parent, new))
    for (name, before), after in zip(next(weights).items(), next(weights).values(), strict=True):
        assert torch.equal(before, after), name
    card = (tmp_path / "new" / "README.md").read_text()
    assert f"replaced the calibration of bundle {parent.digest[:12]}" in card
    assert "10 test cases of A made-up trial" in card


def test_the_same_cases_give_the_same_bundle(tmp_path: Path, store: Store) -> None:
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4))
    assert [run(tmp_path, output=name) for name in ("new", "again", "again")] == [0, 0, 0]
    assert bundle_digest(tmp_path / "new") == bundle_digest(tmp_path / "again")


def test_the_evaluation_of_the_weights_stays_with_them(tmp_path: Path, store: Store) -> None:
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4))
    digest = bundle_digest(tmp_path / "bundle")
    card = EvaluationCard(
        digest, 7, None, None, None, {}, (warn("leakage_not_found", "Arms and trials agree."),), {}
    )
    write_evaluation_card(tmp_path / "bundle", card)
    (tmp_path / "bundle" / CARD).write_text("# Evaluation\n")
    assert run(tmp_path) == 0
    new = bundle_digest(tmp_path / "new")
    assert read_evaluation_card(tmp_path / "new", new) == replace(card, bundle=new)
    text = (tmp_path / "new" / CARD).read_text()
    assert f"the weights of bundle `{digest[:12]}`" in text
    assert text.endswith("# Evaluation\n")


def test_too_few_cases_leave_the_reference_of_typical_patients(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4))
    reference = fit_typicality(store, store.cases)
    write_typicality(tmp_path / "bundle", bundle_digest(tmp_path / "bundle"), reference)
    assert run(tmp_path) == 0
    assert "10 cases are too few to judge how typical a patient is" in caplog.text
    carried = read_typicality(tmp_path / "new", bundle_digest(tmp_path / "new"))
    assert np.array_equal(carried.ranked, reference.ranked, equal_nan=True)


def test_many_cases_make_a_reference_of_their_own(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lesioncast.jobs.calibrate.MIN_RANKED", 5)
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4))
    assert run(tmp_path) == 0
    own = read_typicality(tmp_path / "new", bundle_digest(tmp_path / "new"))
    assert np.array_equal(own.ranked, fit_typicality(store, store.cases).ranked, equal_nan=True)


def test_what_cannot_be_calibrated_is_refused_with_a_reason(
    tmp_path: Path,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4))
    write_bundle(tmp_path / "sampling")
    write_bundle(tmp_path / "other", lesion_loads=(1, 4), settings=OTHER)
    write_bundle(tmp_path / "seen", lesion_loads=(1, 4), trained_on=store.cases[:3])
    assert run(tmp_path, output="bundle") == 2
    assert "--output: expected another folder than that of the bundle" in capsys.readouterr().err
    assert run(tmp_path, split="val") == 1
    assert "NET2 at outcome in split val, got none; choose another --split" in caplog.text
    for bundle, words in (
        ("sampling", "expected a bundle with a prognostic prior, got one that only samples"),
        ("other", "expected the bundle's apply_brain_mask False, got True"),
        ("seen", "got one that was trained on 3 of them"),
    ):
        assert run(tmp_path, bundle=bundle) == 1
        assert words in caplog.text
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.md").write_text("years of work")
    assert run(tmp_path, output="folder") == 1
    assert "expected a bundle or nothing there, got something else" in caplog.text
    assert not (tmp_path / "new").exists()
