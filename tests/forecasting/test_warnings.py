"""A forecast says in one list of warnings, the gravest first, when not to trust it."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lesioncast
from lesioncast.bundle.description import bundle_digest
from lesioncast.bundle.typicality import write_typicality
from lesioncast.forecasting.output.display import make_view
from lesioncast.forecasting.output.figure import ALARM, forecast_figure
from lesioncast.forecasting.output.summary import ForecastSummary
from lesioncast.forecasting.pipeline import stored_flair
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.imaging.typicality import TypicalityReference, fit_gaussian
from lesioncast.training.data.typicality import case_features
from lesioncast.warning_list import SEVERITIES
from storage import Store, open_store
from tests.architecture.tree import ROOT
from tests.support.forecast import SPEC, write_bundle, write_store

SUBJECT = "sub-02"
SETTINGS = ForecastSettings(samples=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_store(folder / "store.zarr", folder / "bids")
    return folder


def reference_around(store: Store, *, shift: float) -> TypicalityReference:
    """Return patients around the features of the subject, who lies `shift` deviations away."""
    own = case_features(store, store.case(SUBJECT))
    rng = np.random.default_rng(0)
    features = own + rng.standard_normal((400, len(own))) + shift
    arm = rng.integers(0, 2, len(features))  # nobody received the third arm
    gaussian = fit_gaussian(features[::4], arm[::4], arms=len(SPEC.arms))
    return TypicalityReference(gaussian, features.astype(np.float32), arm)


def forecast(root: Path, name: str, *, shift: float | None, simulated: bool) -> ForecastSummary:
    bundle, store = root / name, open_store(root / "store.zarr")
    write_bundle(bundle, simulated=simulated)
    if shift is not None:
        write_typicality(bundle, bundle_digest(bundle), reference_around(store, shift=shift))
    found: ForecastSummary = (
        lesioncast.load_bundle(bundle).forecast_case(store, SUBJECT, settings=SETTINGS).summary
    )
    return found


def test_a_real_patient_unlike_simulated_training_is_warned_of_first(root: Path) -> None:
    summary = forecast(root, "far", shift=20, simulated=True)
    codes = [warning.code for warning in summary.warnings]
    assert codes[:2] == ["real_patient_simulated_bundle", "untypical_patient"]
    assert summary.typicality.untypical
    assert summary.typicality.p_value == pytest.approx(1 / 401)
    assert len(summary.typicality.unusual_features) == 3
    first = summary.typicality.unusual_features[0]
    assert f"{first.name} {first.value} (training {first.training_low} to" in (
        summary.warnings[1].text
    )


def test_a_typical_patient_gets_no_alarm(root: Path) -> None:
    summary = forecast(root, "near", shift=0, simulated=False)
    assert not summary.typicality.untypical
    assert "untypical_patient" not in [warning.code for warning in summary.warnings]
    support = summary.typicality.arms
    assert support[SPEC.arms[0]].received_by_similar is True
    assert support[SPEC.arms[2]].received_by_similar is None


def test_a_bundle_without_reference_says_that_typicality_is_not_known(root: Path) -> None:
    summary = forecast(root, "plain", shift=None, simulated=False)
    assert summary.typicality.p_value is None
    (found,) = (one for one in summary.warnings if one.code == "typicality_unknown")
    assert "the bundle holds no reference" in found.text


def test_the_figure_shows_severe_warnings_in_colour(root: Path) -> None:
    store = open_store(root / "store.zarr")
    summary = forecast(root, "drawn", shift=20, simulated=True)
    forecast_of = lesioncast.load_bundle(root / "drawn").forecast_case(
        store, SUBJECT, settings=SETTINGS
    )
    maps = {arm: one.probability for arm, one in forecast_of.arms.items()}
    view = make_view(stored_flair(store)(store.case(SUBJECT)), maps, None)
    shown = [
        text.get_text()
        for text in forecast_figure(view, summary, slices=1).texts
        if text.get_color() == ALARM
    ]
    assert "trained on simulated patients alone" in shown[0]
    assert any("This patient is unlike those" in line for line in shown)
    calm = replace(summary, warnings=())
    texts = forecast_figure(view, calm, slices=1).texts
    assert not any(text.get_color() == ALARM for text in texts)


def test_every_warning_is_documented_with_its_severity() -> None:
    document = (ROOT / "platform/EVALUATION.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (severe|caution|information) \|", document, re.MULTILINE)
    assert dict(rows) == SEVERITIES
