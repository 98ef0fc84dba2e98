"""A sample depends on case, arm and seed alone; the arms of a case share their seeds."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lesioncast.bundle.bundle import load_bundle
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.evaluation.run import summarise_samples
from lesioncast.forecasting.ensemble import (
    Ensemble,
    ExpectedOutcomes,
    active_fraction,
    wilson_interval,
)
from lesioncast.forecasting.output.summary import (
    ActiveFraction,
    ActiveProbability,
    ForecastSummary,
    LesionCountDifference,
    RunProvenance,
    SubjectInfo,
    arm_difference,
    arm_summary,
    summarise,
)
from lesioncast.forecasting.pipeline import assemble_forecast
from lesioncast.forecasting.runtime import (
    make_expectation_predictor,
    session_hider,
    store_reader,
)
from lesioncast.forecasting.sampling import (
    ArmExpectations,
    BatchSampler,
    ConditioningArrays,
    EnsembleRequest,
    ModelInput,
    Seeds,
    ensembles,
    group_by_request,
    plan_batches,
    sample_seeds,
)
from lesioncast.forecasting.settings import ForecastSettings
from tests.support.bids import ARMS
from tests.support.forecast import RATE, SLAB, UNET, fake_draw, write_bundle, write_store

SPACING = (3.0, 2.0, 2.0)


def active_patient(inputs: ModelInput) -> ConditioningArrays:
    return patient(active=inputs.case == 1)


def patient(*, active: bool) -> ConditioningArrays:
    condition = np.full((7, *SLAB), 1.0 if active else -1.0, np.float32)
    return ConditioningArrays(condition, np.empty(0, np.float32))


def sampler() -> BatchSampler:
    return BatchSampler(fake_draw, active_patient, spacing=SPACING)


def numbered(seed: int, samples: int) -> dict[int, Seeds]:
    return {case: sample_seeds(seed, f"sub-{case}", samples) for case in range(6)}


def drawn(
    requests: list[EnsembleRequest], seeds: dict[int, Seeds], *, batch_size: int
) -> list[Ensemble]:
    batches = plan_batches(requests, seeds, batch_size=batch_size)
    return list(ensembles(requests, seeds, map(sampler(), batches)))


def test_a_seed_depends_on_the_run_seed_the_subject_and_its_position_alone() -> None:
    assert sample_seeds(3, "sub-1", 32)[:16] == sample_seeds(3, "sub-1", 16)
    assert not set(sample_seeds(3, "sub-1", 64)) & set(sample_seeds(4, "sub-1", 64))
    assert not set(sample_seeds(3, "sub-1", 64)) & set(sample_seeds(3, "sub-2", 64))
    assert len(set(sample_seeds(0, "sub-1", 1000))) == 1000
    assert all(0 <= seed < 2**63 for seed in sample_seeds(0, "sub-1", 100))


def test_the_arms_of_a_case_share_their_seeds() -> None:
    requests = [EnsembleRequest(0, 0), EnsembleRequest(0, 2), EnsembleRequest(4, 2)]
    batches = plan_batches(requests, numbered(0, 5), batch_size=3)
    seeds = [sample.seed for batch in batches for sample in batch]
    assert seeds[:5] == seeds[5:10]
    assert not set(seeds[5:10]) & set(seeds[10:])
    asked = [sample.request for batch in batches for sample in batch]
    assert list(dict.fromkeys(asked)) == requests


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_ensembles_do_not_depend_on_the_batches(batch_size: int) -> None:
    requests, seeds = (
        [EnsembleRequest(0, 0), EnsembleRequest(1, 0), EnsembleRequest(1, 2)],
        numbered(0, 6),
    )
    found = drawn(requests, seeds, batch_size=batch_size)
    for ensemble, whole in zip(found, drawn(requests, seeds, batch_size=18), strict=True):
        assert (ensemble.case, ensemble.arm) == (whole.case, whole.arm)
        assert ensemble.seeds == whole.seeds == seeds[ensemble.case]
        assert np.array_equal(ensemble.plain, whole.plain)
        assert np.array_equal(ensemble.probability, whole.probability)


def test_the_probability_is_the_share_of_samples_at_each_voxel() -> None:
    (ensemble,) = drawn([EnsembleRequest(1, 1)], numbered(0, 10), batch_size=4)
    share = np.mean(ensemble.plain > 0)
    assert 0 < share < 1
    assert ensemble.probability.dtype == np.float32
    assert ensemble.probability[2, 10, 3] == pytest.approx(share)
    assert np.count_nonzero(ensemble.probability) == 4
    assert ensemble.volume.tolist() == (48.0 * (ensemble.plain > 0)).tolist()


def test_a_missing_batch_is_an_error() -> None:
    requests, seeds = [EnsembleRequest(0, 0), EnsembleRequest(1, 0)], numbered(0, 4)
    batches = plan_batches(requests, seeds, batch_size=4)[:1]
    with pytest.raises(ValueError, match="not enough values"):
        list(ensembles(requests, seeds, map(sampler(), batches)))


def forecast(samples: int, seed: int) -> ForecastSummary:
    arms = ("placebo", "avonex", "ocrelizumab")
    requests = [EnsembleRequest(1, arm) for arm in range(3)]
    found = drawn(requests, numbered(seed, samples), batch_size=16)
    return summarise(
        SubjectInfo("sub-02", "avonex", 1, case_digest="c" * 64),
        dict(zip(arms, found, strict=True)),
        reference="placebo",
        opening=False,
        spacing=SPACING,
        provenance=RunProvenance("b" * 64, seed),
    )


def test_a_summary_describes_the_samples() -> None:
    summary = forecast(200, seed=1)
    for rate, arm in zip(RATE, summary.arms.values(), strict=True):
        assert arm.p_active.low < rate < arm.p_active.high
        assert asdict(arm.p_active) == {**asdict(arm.active_fraction), "exact": False}
        assert arm.count.mean == arm.p_active.value  # never more than one lesion
        assert arm.count.sample_quantiles["0.05"] in (0, 1)
    assert [arm.received for arm in summary.arms.values()] == [False, True, False]
    assert summary.arms["placebo"].minus_reference.count == LesionCountDifference(
        value=0.0, mc_error=0.0, expected=None
    )
    assert "Predicted, not observed." in summary.disclaimers


def expectations(*chances: float) -> ArmExpectations:
    """Return expectations under each arm, with twice as many lesions as P(active)."""
    return tuple(ExpectedOutcomes(p_active, 2 * p_active, p_active) for p_active in chances)


def test_a_summary_holds_exact_expectations() -> None:
    requests, seeds = [EnsembleRequest(1, 0), EnsembleRequest(1, 1)], numbered(0, 40)
    exact_sampler = BatchSampler(
        fake_draw, active_patient, spacing=SPACING, predict=lambda *_: expectations(0.8, 0.55, 0.1)
    )
    batches = map(exact_sampler, plan_batches(requests, seeds, batch_size=8))
    found = list(ensembles(requests, seeds, batches))
    reference, other = (
        arm_summary(ensemble, found[0], received=False, opening=False) for ensemble in found
    )
    assert reference.p_active == ActiveProbability(value=0.8, low=None, high=None, exact=True)
    assert other.p_active.value == 0.55
    share = active_fraction(found[1].counts(opening=False))
    low, high = wilson_interval(share, 40)
    assert other.active_fraction == ActiveFraction(value=share, low=low, high=high)
    difference = arm_difference(found[1], found[0], opening=False)
    assert difference.p_active.value == pytest.approx(-0.25)
    assert difference.p_active.mc_error == 0.0
    assert difference.count.mc_error > 0
    assert difference.count.expected == pytest.approx(-0.5)
    assert reference.count.expected == 1.6
    opened = arm_summary(found[0], found[0], received=False, opening=True)
    assert (opened.p_active.exact, opened.count.expected) == (False, None)


@pytest.mark.parametrize("clipped", [(), ("lesion volume of w048/t2", "age")])
def test_a_warning_names_the_inputs_beyond_the_training_range(
    tmp_path: Path, clipped: tuple[str, ...]
) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=2)
    requests, seeds = [EnsembleRequest(1, arm) for arm in range(3)], numbered(0, 4)
    expected = (ExpectedOutcomes(0.5, 1.0, 0.5, clipped=clipped),) * 3
    exact_sampler = BatchSampler(
        fake_draw, active_patient, spacing=SPACING, predict=lambda *_: expected
    )
    batches = map(exact_sampler, plan_batches(requests, seeds, batch_size=12))
    by_arm = dict(zip(store.spec.arms, ensembles(requests, seeds, batches), strict=True))
    assembled = assemble_forecast(
        store, store.cases[1], by_arm,
        settings=ForecastSettings(samples=4, reference_arm="placebo"),
        provenance=RunProvenance("b" * 64, 0),
    )  # fmt: skip
    found = [one for one in assembled.summary.warnings if one.code == "beyond_training_range"]
    assert len(found) == len(clipped[:1])
    assert all("expected count: lesion volume of w048/t2, age." in one.text for one in found)
    assert assembled.summary.typicality.beyond_training_range == clipped


def test_expectations_name_the_inputs_that_the_prior_clips(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=2)
    write_bundle(tmp_path / "bundle", lesion_loads=(1, 4), flair_reader=True)
    bundle = load_bundle(tmp_path / "bundle")
    prior, model = bundle.model.control.lesion_load_prior, bundle.config.model
    predict = make_expectation_predictor([prior], model, device="cpu")
    inputs = store_reader(store, model)(ModelInput(1))
    # The reader gives way to the masks that a patient has.
    condition = inputs.condition.copy()
    condition[model.control.masks] = 0
    inputs = inputs._replace(condition=condition)
    assert {one.clipped for one in predict(inputs)} == {()}
    prior.highest[-3:] = -100.0
    assert {one.clipped for one in predict(inputs)} == {
        ("new lesions between FLAIR of w000 and w048",)
    }


def test_expectations_are_also_computed_for_the_comparison_sessions() -> None:
    def read(inputs: ModelInput) -> ConditioningArrays:
        return patient(active=inputs.case == 1 and inputs.sessions is None)

    def predict(inputs: ConditioningArrays) -> ArmExpectations:
        active = (inputs.condition > 0).any()
        return expectations(0.9, 0.8, 0.7) if active else expectations(0.3, 0.2, 0.1)

    samples = BatchSampler(
        fake_draw, read, spacing=SPACING, predict=predict, comparison_sessions=("w000",)
    )
    requests = [EnsembleRequest(1, 1), EnsembleRequest(1, 1, ("w000",))]
    seeds = numbered(0, 40)
    for size in (80, 40):  # in one batch, and each in its own
        batches = plan_batches(requests, seeds, batch_size=size)
        every, start = group_by_request(requests, seeds, map(samples, batches))
        assert np.mean(every.plain) > 0.3 > np.mean(start.plain)
        assert (every.expected, start.expected) == (*expectations(0.8), *expectations(0.2))
        assert every.all_expected[ModelInput(1, ("w000",))] == expectations(0.3, 0.2, 0.1)


def test_a_case_at_hand_is_not_read_again_for_the_comparison_sessions(tmp_path: Path) -> None:
    store, config = write_store(tmp_path / "store.zarr", tmp_path / "bids"), ModelConfig(ARMS, UNET)
    read_case, inputs_read = store_reader(store, config), []

    def read(inputs: ModelInput) -> ConditioningArrays:
        inputs_read.append(inputs)
        return read_case(inputs)

    def predict(inputs: ConditioningArrays) -> ArmExpectations:
        return expectations(*np.abs(inputs.condition).mean(axis=(1, 2, 3))[:3].tolist())

    hiding, reading = (
        BatchSampler(
            fake_draw,
            read,
            spacing=SPACING,
            predict=predict,
            comparison_sessions=("w000",),
            hide=hide,
        )
        for hide in (session_hider(config), None)
    )
    batch = plan_batches(
        [EnsembleRequest(1, 1), EnsembleRequest(2, 0)], numbered(0, 2), batch_size=4
    )
    for samples, reads in ((hiding, 2), (reading, 4)):
        inputs_read.clear()
        found = samples(batch[0]).expected
        assert len(inputs_read) == reads
        for key, of_arms in found.items():
            assert of_arms == predict(read_case(key))
        assert len(found) == 4
    alone = plan_batches([EnsembleRequest(1, 1, ("w000",))], numbered(0, 2), batch_size=4)
    assert list(hiding(alone[0]).expected) == [ModelInput(1, ("w000",))]


def test_the_paired_error_is_that_of_nested_arms_not_of_independent_ones() -> None:
    """Check common random numbers: a sample active under avonex (.5) is so under placebo (.8)."""
    record = forecast(400, seed=1)
    gap = record.arms["avonex"].minus_reference.p_active
    assert gap.value == pytest.approx(-0.3, abs=0.07)
    assert gap.mc_error == pytest.approx(np.sqrt(0.3 * 0.7 / 400), rel=0.1)
    assert gap.mc_error < np.sqrt((0.8 * 0.2 + 0.5 * 0.5) / 400) * 0.8


def test_the_paired_error_is_the_spread_over_runs() -> None:
    gaps = [forecast(60, seed).arms["avonex"].minus_reference.p_active for seed in range(40)]
    spread = np.std([gap.value for gap in gaps], ddof=1)
    assert spread == pytest.approx(np.mean([gap.mc_error for gap in gaps]), rel=0.35)


def test_arms_on_different_seeds_are_not_paired() -> None:
    first = drawn([EnsembleRequest(1, 0)], numbered(0, 4), batch_size=4)[0]
    other = drawn([EnsembleRequest(1, 1)], numbered(1, 4), batch_size=4)[0]
    with pytest.raises(ValueError, match="same seeds"):
        summarise(
            SubjectInfo("sub-02", None, None),
            {"placebo": first, "avonex": other},
            reference="placebo",
            opening=False,
            spacing=SPACING,
            provenance=RunProvenance("b", 0),
        )


def test_masks_are_compared_with_the_observed_mask_under_the_arm_received_alone(
    tmp_path: Path,
) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=2)
    requests, seeds = (
        [EnsembleRequest(1, 0), EnsembleRequest(1, 1)],
        numbered(0, 6),
    )  # case 1 received arm 1
    batches = plan_batches(requests, seeds, batch_size=4)
    samples = list(group_by_request(requests, seeds, map(sampler(), batches)))
    tallies = [summarise_samples(each, store, compare=True) for each in samples]
    assert tallies[0].spatial is None
    spatial = tallies[1].spatial
    active = np.mean(samples[1].plain > 0)
    assert 0 < active < 1
    assert spatial.distance == pytest.approx(1 - active)  # a sample draws the very lesion, or none
    assert spatial.regions is None
    assert summarise_samples(samples[1], store, compare=False).spatial is None
