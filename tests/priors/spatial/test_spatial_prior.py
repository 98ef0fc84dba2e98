"""The spatial prior: densities, patterns of presence, what it learns, and how it is stored."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from lesioncast.priors.spatial.atlas import LesionAtlas
from lesioncast.priors.spatial.conditional_logit import Controls, fit_conditional_logit
from lesioncast.priors.spatial.features.flair import tissue_intensity
from lesioncast.priors.spatial.features.regions import preferred_sides
from lesioncast.priors.spatial.features.tissue import classes_of
from lesioncast.priors.spatial.fit import SpatialFitSettings, fit_spatial_prior
from lesioncast.priors.spatial.inputs import CHANNELS, SpatialCase, SpatialInputs
from lesioncast.priors.spatial.patterns import NOTHING, PATTERNS, pattern_of, reduced
from lesioncast.priors.spatial.prior import LOG_IMPOSSIBLE, SpatialPrior
from lesioncast.priors.spatial.sampling import draw_controls
from lesioncast.priors.spatial.smoothing import smooth
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
    del config["features"]
    with pytest.raises(ValueError, match="expected features of version .*, got 1"):
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


def test_tissue_is_told_from_flair_without_a_parcellation(
    prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    assert prior.classifier is not None
    found = []
    for case in unseen[:10]:
        labels = classes_of(case.inputs.parcellation)
        inside = labels >= 0
        intensity = tissue_intensity(case.inputs, inside).mean(axis=0)
        tissue = prior.classifier.classify(intensity, inside, SPACING).classes
        np.testing.assert_allclose(tissue.sum(axis=0)[inside], 1, rtol=1e-4)
        assert not tissue[:, ~inside].any()
        found.append((tissue.argmax(axis=0) == labels)[inside].mean())
    assert np.mean(found) > 0.9


def test_lesions_are_seen_in_flair_without_masks(
    prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    assert prior.classifier is not None
    found, wrong = [], []
    for case in unseen[:10]:
        older = case.inputs.channels["w048/t2"] > 0
        brain = case.inputs.parcellation > 0
        intensity = tissue_intensity(case.inputs, brain).mean(axis=0)
        seen = prior.classifier.classify(intensity, brain, SPACING).lesions
        assert not seen[~brain].any()
        found.append(seen[older].mean())
        wrong.append(seen[~older].sum() / older.sum())
    assert np.mean(found) > 0.7
    assert np.mean(wrong) < 0.3


def test_flair_alone_places_lesions_beside_those_it_shows(
    prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    flair = [name for name in CHANNELS if name.endswith("flair")]
    losses = []
    for case, other in zip(unseen, unseen[1:], strict=False):
        own, lent = (
            replace(one.inputs, channels={name: one.inputs.channels[name] for name in flair})
            for one in (case, other)
        )
        losses.append(gain(prior, own, case) - gain(prior, lent, case))
    assert np.mean(losses) - 2 * np.std(losses) / np.sqrt(len(losses)) > 0


def test_cases_without_parcellation_still_give_a_prior(
    cases: list[SpatialCase], unseen: list[SpatialCase]
) -> None:
    plain = [replace(case, inputs=replace(case.inputs, parcellation=None)) for case in cases]
    prior = fit_spatial_prior(plain, SETTINGS, seed=0)
    assert prior.classifier is None
    assert not any(pattern.parcellation for pattern in prior.models)
    gains = [gain(prior, replace(c.inputs, parcellation=None), c) for c in unseen]
    assert np.mean(gains) > 3
    config, arrays = prior.to_arrays()
    assert SpatialPrior.from_arrays(config, arrays).classifier is None


def test_the_atlas_of_a_training_case_leaves_out_its_own_lesions(cases: list[SpatialCase]) -> None:
    """A case that counts itself in its atlas would learn to trust the atlas too much."""
    outcomes = [case.outcome for case in cases]
    atlas = LesionAtlas(np.sum(outcomes, axis=0).astype(np.float32), SPACING)
    others = LesionAtlas(np.sum(outcomes[1:], axis=0).astype(np.float32), SPACING)
    np.testing.assert_allclose(
        atlas.without(outcomes[0]).densities, others.densities, rtol=1e-4, atol=1e-9
    )
    assert not np.allclose(atlas.densities, others.densities, rtol=1e-4, atol=1e-9)


def test_a_patients_lesions_say_which_side_it_prefers() -> None:
    atlas = np.ones(SHAPE, np.float32)
    at = np.arange(atlas.size)
    weights = np.zeros(SHAPE)
    weights[:, 2, 9], weights[:, 17, 9] = 1, 0.25
    sides = preferred_sides(weights, atlas, at).reshape(3, *SHAPE)
    assert (np.diff(sides[1], axis=1) <= 0).all()
    assert np.ptp(sides[1]) > 0.5
    np.testing.assert_allclose(sides[0], 0, atol=1e-6)
    assert not preferred_sides(np.zeros(SHAPE), atlas, at).any()


@pytest.mark.parametrize("sigma", [3.0, 7.0, 16.0])
@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (3.0, 1.0, 1.5)])
def test_smoothing_is_that_of_a_gaussian_in_millimetres(
    sigma: float, spacing: tuple[float, float, float]
) -> None:
    volume = np.zeros((12, 40, 41), np.float32)
    volume[5, 15:25, 12:30] = 1
    widths = [sigma / step for step in spacing]
    expected = ndimage.gaussian_filter(volume, widths, mode="constant", truncate=8)
    smoothed = smooth(volume, spacing, sigma)
    assert np.abs(smoothed - expected).max() < 0.03 * expected.max()


def test_importance_sampled_controls_estimate_sums_over_the_brain() -> None:
    case = make_case(0)
    brain = case.inputs.parcellation > 0
    atlas = np.exp(-np.arange(brain.size) / 500).reshape(SHAPE).astype(np.float32)
    older = case.inputs.channels["w000/t2"] > 0
    rng = np.random.default_rng(0)
    drawn = draw_controls(rng, brain, atlas / atlas.sum(), older, number=20_000, spacing=SPACING)
    value = np.cos(np.arange(brain.size) / 300) * brain.ravel()
    estimate = (np.exp(drawn.log_weight) * value[drawn.at]).sum()
    assert estimate == pytest.approx(value.sum(), abs=0.03 * brain.sum())


def test_the_fit_finds_the_weights_of_a_known_law() -> None:
    rng = np.random.default_rng(0)
    weight, cases, voxels, lesions = np.array([1.0, -0.5]), 150, 300, 20
    features = rng.standard_normal((cases, 2, voxels)).astype(np.float32)
    score = np.einsum("k,nkv->nv", weight, features)
    density = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
    found = np.array(
        [
            features[row][:, rng.choice(voxels, lesions, p=density[row])].sum(axis=1)
            for row in range(cases)
        ]
    )
    controls = Controls(
        np.concatenate(list(features), axis=1),
        np.zeros(cases * voxels, np.float32),
        np.arange(cases) * voxels,
    )
    model = fit_conditional_logit(
        controls, found, np.full(cases, lesions), penalty=1e-6, iterations=60
    )
    np.testing.assert_allclose(model.weight / model.scale, weight, atol=0.06)


def test_added_lesions_move_the_map_towards_them(
    prior: SpatialPrior, unseen: list[SpatialCase]
) -> None:
    """The made-up law places most new lesions beside older ones."""
    inputs = unseen[0].inputs
    older = inputs.channels["w048/t2"] > 0
    away = ndimage.distance_transform_edt(~older, sampling=SPACING) > 6
    white = np.flatnonzero((inputs.parcellation == 2) & away)
    places = white[len(white) // 8 :: len(white) // 4]
    beside = np.ones(SHAPE, bool)
    beside.flat[places] = False
    beside = ndimage.distance_transform_edt(beside, sampling=SPACING) < 5
    shares = []
    for number in range(len(places) + 1):
        shown = inputs.channels["w048/t2"].copy()
        shown.flat[places[:number]] = 1
        channels = dict(inputs.channels) | {"w000/t2": shown, "w048/t2": shown}
        density = np.exp(prior.log_density(replace(inputs, channels=channels)))
        shares.append(float(density[beside].sum()))
    assert len(shares) == 5
    assert shares == sorted(shares)
    assert shares[-1] > 2 * shares[0]
