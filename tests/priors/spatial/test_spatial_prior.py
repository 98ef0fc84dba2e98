"""The spatial prior: densities, patterns of presence, what it learns, and how it is stored."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lesioncast.priors.spatial.fit import SpatialFitSettings, fit_spatial_prior
from lesioncast.priors.spatial.inputs import CHANNELS, SpatialCase, SpatialInputs
from lesioncast.priors.spatial.patterns import NOTHING, PATTERNS, pattern_of, reduced
from lesioncast.priors.spatial.prior import LOG_IMPOSSIBLE, SpatialPrior
from tests.priors.spatial.made_up_cases import SHAPE, SPACING, make_case

SETTINGS = SpatialFitSettings(cases=60, controls=200)


@pytest.fixture(scope="module")
def cases() -> list[SpatialCase]:
    return [make_case(seed) for seed in range(60)]


@pytest.fixture(scope="module")
def prior(cases: list[SpatialCase]) -> SpatialPrior:
    return fit_spatial_prior(cases, SETTINGS, seed=0)


@pytest.fixture(scope="module")
def unseen() -> list[SpatialCase]:
    return [make_case(seed) for seed in range(100, 140)]


def gain(prior: SpatialPrior, inputs: SpatialInputs, case: SpatialCase) -> float:
    """Return the nats of a case's lesion voxels over the atlas."""
    atlas = prior.atlas_log_density()
    return float((prior.log_density(inputs) - atlas)[case.outcome].sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_every_pattern_gives_a_density_over_the_brain_it_shows(
    pattern, prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    inputs = reduced(unseen[0].inputs, pattern)
    assert inputs is not None
    density = prior.log_density(inputs)
    assert density.shape == SHAPE
    assert np.isfinite(density).all()
    assert np.exp(density, dtype=np.float64).sum() == pytest.approx(1, abs=1e-4)
    if pattern.parcellation or pattern.flair:
        outside = unseen[0].inputs.parcellation == 0
        assert (density[outside] == LOG_IMPOSSIBLE).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_every_pattern_gains_on_unseen_cases(
    pattern, prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    gains = [gain(prior, reduced(case.inputs, pattern), case) for case in unseen]
    if pattern.history in ("complete", "baseline"):
        assert np.mean(gains) > 3
    else:
        assert np.mean(gains) > -0.5


def test_lesions_of_another_patient_are_worse_than_ones_own(
    prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    losses = []
    for case, other in zip(unseen, unseen[1:], strict=False):
        borrowed = replace(case.inputs, channels=other.inputs.channels)
        losses.append(gain(prior, case.inputs, case) - gain(prior, borrowed, case))
    assert np.mean(losses) - 2 * np.std(losses) / np.sqrt(len(losses)) > 0


def test_no_input_gives_the_atlas(prior: SpatialPrior) -> None:
    empty = SpatialInputs({}, SPACING)
    assert pattern_of(empty) == NOTHING
    np.testing.assert_array_equal(prior.log_density(empty), prior.atlas_log_density())
    assert np.exp(prior.atlas_log_density()).sum() == pytest.approx(1, abs=1e-4)


def test_channels_of_the_outcome_are_not_read(
    prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    case = unseen[0]
    leak = np.where(case.outcome, 1, -1).astype(np.float32)
    channels = dict(case.inputs.channels) | {"w096/net2": leak, "w096/flair": leak}
    assert not {"w096/net2", "w096/flair"} & set(CHANNELS)
    np.testing.assert_array_equal(
        prior.log_density(replace(case.inputs, channels=channels)), prior.log_density(case.inputs)
    )


def test_a_pattern_without_weights_is_reduced_to_one_that_has_some(
    prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    full = pattern_of(unseen[0].inputs)
    fewer = replace(prior, models={p: m for p, m in prior.models.items() if p != full})
    used = fewer.pattern_used(unseen[0].inputs)
    assert used in fewer.models
    np.testing.assert_array_equal(
        fewer.log_density(unseen[0].inputs),
        prior.log_density(reduced(unseen[0].inputs, used)),
    )
    alone = replace(prior, models={})
    inside = unseen[0].inputs.parcellation > 0
    ratio = (alone.log_density(unseen[0].inputs) - prior.atlas_log_density())[inside]
    assert np.ptp(ratio) < 1e-4


def test_the_same_seed_gives_the_same_prior(cases: list[SpatialCase], prior: SpatialPrior) -> None:
    _, first = prior.to_arrays()
    _, again = fit_spatial_prior(cases, SETTINGS, seed=0).to_arrays()
    _, other = fit_spatial_prior(cases, SETTINGS, seed=1).to_arrays()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_arrays_hold_the_whole_prior(prior: SpatialPrior, unseen: list[SpatialCase]) -> None:
    config, arrays = prior.to_arrays()
    stored = SpatialPrior.from_arrays(json.loads(json.dumps(config)), arrays)
    np.testing.assert_array_equal(
        stored.log_density(unseen[0].inputs), prior.log_density(unseen[0].inputs)
    )
    config["patterns"] = ["unheard"]
    with pytest.raises(ValueError, match="expected patterns of .*unheard"):
        SpatialPrior.from_arrays(config, arrays)


def test_volumes_of_another_grid_are_refused(
    prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    with pytest.raises(ValueError, match="expected volumes of"):
        prior.log_density(replace(unseen[0].inputs, spacing=(3.0, 1.0, 1.0)))
    channels = dict(unseen[0].inputs.channels)
    channels["w000/t2"] = channels["w000/t2"][:3]
    with pytest.raises(ValueError, match="of one size"):
        prior.log_density(replace(unseen[0].inputs, channels=channels))


def test_cases_without_new_lesions_are_refused() -> None:
    case = make_case(0)
    with pytest.raises(ValueError, match="expected training cases with new lesions"):
        fit_spatial_prior([replace(case, outcome=np.zeros(SHAPE, bool))], SETTINGS, seed=0)
