"""The section on where: constant, shuffled and oracle methods get the scores that they must."""

from dataclasses import replace

import numpy as np
import pytest

from lesioncast.evaluation.analysis.where import (
    WhereReport,
    closed_form_risks,
    where_report,
)
from lesioncast.evaluation.features.image_features import lesion_voxels
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.metrics.mask_comparison import ObservedMask
from lesioncast.evaluation.reporting.estimates_csv import estimates_csv
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.json_io import report_from_json, report_to_json
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.evaluation.reporting.markdown.where import where_section
from lesioncast.evaluation.reporting.summary_page import evaluation_section
from lesioncast.evaluation.where.case_scores import score_samples
from lesioncast.evaluation.where.density import density_in
from lesioncast.evaluation.where.kernel_score import kernel_scores_of_empty
from lesioncast.evaluation.where.map_scores import RANK_EDGES, score_map
from lesioncast.evaluation.where.measurements import (
    ATLAS,
    CLIMATOLOGY,
    EVEN,
    EXACT,
    NETWORKS,
    OTHER_HISTORY,
    OTHER_IMAGES,
    PRIOR_OTHER_HISTORY,
    PRIOR_OTHER_IMAGES,
    RINGS,
    SAMPLES,
    SPATIAL_PRIOR,
    CaseWhere,
    WhereMeasurements,
)
from lesioncast.evaluation.where.rings import NUMBER_OF_RINGS
from lesioncast.evaluation.where.run import (
    WhereInputs,
    case_at,
    exchange_partners,
    mean_voxels_by_arm,
    plan_tasks,
)
from lesioncast.imaging.lesions import components
from tests.evaluation.test_report import TEST, evaluated_with_validation

SHAPE, SPACING = (6, 24, 24), (3.0, 3.0, 3.0)
BRAIN = np.ones(SHAPE, bool)
VOXELS = BRAIN.size
CASES, SAMPLES_A_CASE = 200, 3


def risk(seed: int) -> np.ndarray:
    """Return a patient's own density of lesion centres."""
    field = np.random.default_rng([seed, 1]).standard_normal(SHAPE)
    weights = np.exp(2 * field)
    return weights / weights.sum()


def draw(density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a mask; two cases in three have new lesions, four voxels of them."""
    mask = np.zeros(SHAPE, bool)
    if rng.random() < 2 / 3:
        mask.flat[rng.choice(VOXELS, 4, replace=False, p=density.ravel())] = True
    return mask


def measured(seed: int) -> CaseWhere:
    """Measure a case whose networks know its density, and read another's from other images."""
    rng = np.random.default_rng([seed, 2])
    own, other, atlas = risk(seed), risk(seed + 1000), np.ones(SHAPE)
    mask = draw(own, rng)
    observed = ObservedMask(mask)
    maps = {
        EVEN: atlas,
        ATLAS: atlas,
        RINGS: risk(seed + 2000),
        NETWORKS: own,
        SAMPLES: np.mean([draw(own, rng) for _ in range(SAMPLES_A_CASE)], axis=0),
        EXACT: own,
        OTHER_IMAGES: other,
        OTHER_HISTORY: own,
    }
    densities = {key: density_in(BRAIN, volume) for key, volume in maps.items()}
    labels = components(mask)[0][BRAIN]
    sampled = {
        NETWORKS: np.stack([mask] * SAMPLES_A_CASE),
        CLIMATOLOGY: np.zeros((SAMPLES_A_CASE, *SHAPE), bool),
        EXACT: np.stack([draw(own, rng) for _ in range(SAMPLES_A_CASE)]),
    }
    return CaseWhere(
        case=seed,
        arm=seed % 2,
        brain_voxels=VOXELS,
        lesion_voxels=int(mask.sum()),
        lesion_voxels_outside=0,
        maps={
            key: score_map(density, densities[ATLAS], labels) for key, density in densities.items()
        }
        if mask.any()
        else {},
        samples={key: score_samples(masks, observed, SPACING) for key, masks in sampled.items()},
        kernel_of_empty=kernel_scores_of_empty(mask, SPACING),
    )


MEASURED = WhereMeasurements(
    cases=tuple(measured(seed) for seed in range(CASES)),
    mean_voxels=np.array([4.0, 4.0]),
    ring_rates=np.ones(NUMBER_OF_RINGS),
)


def agrees(estimate: Estimate, expected: float) -> bool:
    """Return whether an estimate is within 3.5 standard errors of a value."""
    error = (estimate.high - estimate.low) / (2 * 1.96)
    return bool(abs(estimate.value - expected) < 3.5 * error) and error < 0.1


@pytest.fixture(scope="module")
def report() -> WhereReport:
    found = where_report(MEASURED, bootstrap=Bootstrap(200, 0))
    assert found is not None
    return found


def test_a_constant_map_is_chance_in_every_column(report: WhereReport) -> None:
    for key in (EVEN, ATLAS):
        scores = report.maps[key]
        assert scores.nats_case.value == scores.nats_lesion.value == 0
        assert scores.auc.value == pytest.approx(0.5)
        tops = [scores.top_1.value, scores.top_5.value, scores.top_10.value]
        assert tops == pytest.approx([0.01, 0.05, 0.10])
        assert scores.miscalibration.value == pytest.approx(0, abs=1e-9)


def test_another_patients_map_is_chance_and_loses_nats(report: WhereReport) -> None:
    scores = report.maps[RINGS]
    assert agrees(scores.auc, 0.5)
    assert scores.nats_case.high < 0
    assert agrees(scores.top_10, 0.10)
    assert scores.miscalibration.value > 0.3


def test_the_true_density_is_reliable_and_gains(report: WhereReport) -> None:
    scores = report.maps[NETWORKS]
    assert scores == report.maps[EXACT]
    assert scores.nats_case.low > 1
    assert scores.auc.low > 0.8
    assert scores.miscalibration.value < report.maps[RINGS].miscalibration.value / 3
    # Four voxels a case are expected, and as many are observed in each bin of ranks.
    for row in scores.ranks[:6]:
        assert agrees(row.observed, row.probability)
    total = sum(row.probability * (row.high - row.low) * VOXELS for row in scores.ranks)
    assert total == pytest.approx(4)


def test_a_few_samples_know_less_than_the_map_that_they_are_drawn_from(report: WhereReport) -> None:
    assert report.maps[SAMPLES].nats_case.high < report.maps[NETWORKS].nats_case.low


def test_reliance_is_what_the_map_loses_with_the_images_of_another(report: WhereReport) -> None:
    assert report.reliance is not None
    inputs = report.reliance.inputs
    assert report.reliance.cases == report.positives
    assert inputs[OTHER_IMAGES].loss.low > 1
    assert agrees(inputs[OTHER_IMAGES].auc, 0.5)
    assert inputs[OTHER_HISTORY].loss.value == 0  # a map that ignores the masks loses nothing
    assert inputs[NETWORKS].loss is None


def test_sampled_masks_of_an_oracle_are_perfect_and_empty_ones_have_one(
    report: WhereReport,
) -> None:
    oracle, empty = report.samples.methods[NETWORKS], report.samples.methods[CLIMATOLOGY]
    law = report.samples.methods[EXACT]
    for name in ("kernel_3mm", "kernel_6mm", "kernel_10mm"):
        assert getattr(oracle, name).value == pytest.approx(0, abs=2e-3)
        assert getattr(empty, name).value == pytest.approx(1)
        assert getattr(law, name).value < 1
    assert oracle.f1.value == 1
    assert oracle.energy_distance.value == 0
    assert empty.f1.value == empty.voxels.value == 0
    assert oracle.voxels.value == pytest.approx(report.samples.observed_voxels)


def with_prior(case: CaseWhere) -> CaseWhere:
    """Return a case whose spatial prior knows as much as its networks, and takes it from images."""
    if not case.maps:
        return case
    own, other = case.maps[NETWORKS], case.maps[OTHER_IMAGES]
    prior = {SPATIAL_PRIOR: own, PRIOR_OTHER_HISTORY: own, PRIOR_OTHER_IMAGES: other}
    return replace(case, maps={**case.maps, **prior})


def test_the_spatial_prior_has_rows_of_its_own_and_paired_differences(
    report: WhereReport,
) -> None:
    cases = tuple(map(with_prior, MEASURED.cases))
    found = where_report(replace(MEASURED, cases=cases), bootstrap=Bootstrap(200, 0))
    assert found is not None
    assert found.maps[SPATIAL_PRIOR] == found.maps[NETWORKS]
    differences = {(row.method, row.minus_method): row.difference for row in found.differences}
    same = differences[NETWORKS, SPATIAL_PRIOR]
    assert same.value == same.low == same.high == 0
    gain = found.maps[SPATIAL_PRIOR].nats_case.value - found.maps[RINGS].nats_case.value
    assert differences[SPATIAL_PRIOR, RINGS].value == pytest.approx(gain)
    assert differences[SPATIAL_PRIOR, RINGS].low > 0
    inputs = found.reliance.inputs
    assert inputs[PRIOR_OTHER_IMAGES] == inputs[OTHER_IMAGES]
    assert inputs[PRIOR_OTHER_HISTORY].loss.value == 0
    assert inputs[SPATIAL_PRIOR].loss is None
    whole = replace(evaluated_with_validation(TEST.plain).report, where=found)
    assert report_from_json(report_to_json(whole), source="metrics.json") == whole
    assert f"{NETWORKS} minus {SPATIAL_PRIOR}" in estimates_csv(whole)
    text = where_section(found)
    assert "| spatial prior alone |" in text
    assert "| networks, marginal map | spatial prior alone | 0.00 (0.00 to 0.00) |" in text
    assert "| spatial prior alone, images of another patient |" in text
    words = next(each.text for each in findings(whole) if each.title == "Where will they lie?")
    assert "by itself; networks minus prior: 0.00" in words
    page = evaluation_section(whole, heading="Evaluation")
    assert "networks, marginal map minus spatial prior alone: **0.00" in page
    # A bundle without a spatial prior has none of these.
    without = replace(whole, where=report)
    assert report.differences == ()
    for rendered in (where_section(report), evaluation_section(without, heading="Evaluation")):
        assert "spatial prior" not in rendered


def test_regional_risks_of_all_cases_are_collected_in_order() -> None:
    assert closed_form_risks(None) is None
    assert closed_form_risks(MEASURED) is None
    first, *others = MEASURED.cases
    stated = replace(first, regions={"white_matter": 0.3, "cortex": 0.1})
    risks = closed_form_risks(replace(MEASURED, cases=(stated, *others)))
    assert risks is not None
    assert risks[0].tolist() == [0.3, 0.1]
    assert np.isnan(risks[1:]).all()


def test_without_the_law_its_rows_are_left_out() -> None:
    cases = tuple(
        replace(
            case,
            maps={key: score for key, score in case.maps.items() if key != EXACT},
            samples={key: score for key, score in case.samples.items() if key != EXACT},
        )
        for case in MEASURED.cases
    )
    found = where_report(replace(MEASURED, cases=cases), bootstrap=Bootstrap(100, 0))
    assert EXACT not in found.maps
    assert EXACT not in found.samples.methods
    assert "exact law of the simulation |" not in where_section(found)


def test_without_new_lesions_there_is_no_section() -> None:
    quiet = tuple(case for case in MEASURED.cases if not case.maps)
    assert quiet
    assert where_report(replace(MEASURED, cases=quiet), bootstrap=Bootstrap(100, 0)) is None
    assert where_report(None, bootstrap=Bootstrap(100, 0)) is None
    assert where_section(None) == ""


def test_the_section_names_definitions_and_every_map(report: WhereReport) -> None:
    text = where_section(report)
    assert "log(density / atlas density), in nats" in text
    assert "| even brain | 0.00 (0.00 to 0.00) | 0.00 (0.00 to 0.00) | 0.500" in text
    assert text.count("### Reliability of the map") == 3


def table(voxels: list[list[int]], arm: list[int], *, first: int = 0) -> OutcomeTable:
    cases = len(arm)
    return OutcomeTable(
        case=tuple(range(first, first + cases)),
        subjects=tuple(f"sub-{row}" for row in range(cases)),
        arm=np.array(arm),
        image_features=np.zeros((cases, 11)),
        plain=np.array([float(bool(places)) for places in voxels]),
        opened=np.zeros(cases),
        net2_count_current=np.zeros(cases),
        regions=np.zeros((cases, 2)),
        trial=(None,) * cases,
        net2_voxels=tuple(np.array(places, np.int32) for places in voxels),
    )


def test_images_are_exchanged_between_active_cases_of_an_arm() -> None:
    arm = np.array([0, 0, 0, 1, 1, 2])
    active = np.array([True, True, True, True, False, True])
    assert exchange_partners(arm, active) == {0: 1, 1: 2, 2: 0}


def test_cases_of_figures_are_chosen_by_their_order_among_active_ones() -> None:
    voxels = np.array([0, 9, 2, 5, 7, 0, 30])
    assert [case_at(voxels, share) for share in (0.2, 0.5, 0.9)] == [3, 4, 6]
    assert case_at(np.zeros(3), 0.5) is None
    assert case_at(np.array([0, 0, 4]), 0.9) == 2


def test_tasks_take_samples_of_the_case_and_masks_of_its_arm() -> None:
    train = table([[1, 2], [], [7], [1, 2, 3, 4]], [0, 0, 1, 1])
    test = table([[5], [6], []], [0, 0, 1], first=10)
    factual = {
        (10 + row, arm): EnsembleSummary(
            plain=np.ones(2, int),
            opened=np.ones(2, int),
            lesion_voxels=(np.array([row]), np.array([row, 9])),
        )
        for row, arm in enumerate([0, 0, 1])
    }
    tasks = plan_tasks(WhereInputs(train, test, factual, None, seed=0), samples=2)
    assert [task.case for task in tasks] == [10, 11, 12]
    assert [task.other for task in tasks] == [11, 10, None]
    assert [task.keep_maps for task in tasks] == [True, True, False]  # few, then median and many
    assert [task.p_active for task in tasks] == [1.0, 1.0, 1.0]
    assert tasks[1].sampled == factual[11, 0].lesion_voxels
    assert {tuple(mask) for mask in tasks[2].climatology} <= {(7,), (1, 2, 3, 4)}
    assert mean_voxels_by_arm(train, arms=3).tolist() == [2.0, 2.5, pytest.approx(7 / 3)]


def test_lesion_voxels_are_a_mask_in_little_memory() -> None:
    mask = draw(risk(0), np.random.default_rng(0)) | draw(risk(1), np.random.default_rng(1))
    again = np.zeros(SHAPE, bool)
    again.flat[lesion_voxels(mask)] = True
    assert np.array_equal(mask, again)


def test_the_section_is_part_of_every_file(report: WhereReport) -> None:
    whole = replace(evaluated_with_validation(TEST.plain).report, where=report)
    assert report_from_json(report_to_json(whole), source="metrics.json") == whole
    rows = [line.split(",") for line in estimates_csv(whole).splitlines()]
    (gain,) = [row for row in rows if row[:4] == ["where.maps", "", "nats_case", NETWORKS]]
    assert float(gain[4]) == report.maps[NETWORKS].nats_case.value
    assert gain[7:] == [str(report.cases), str(report.positives)]
    bins = [row for row in rows if row[0] == "where.maps.ranks" and row[3] == NETWORKS]
    assert bins[0][1] == "top 0 to 1 %"
    assert len(bins) == len(RANK_EDGES) - 1
    (loss,) = [row for row in rows if row[2] == "loss" and row[3] == OTHER_IMAGES]
    assert loss[0] == "where.reliance.inputs"
    where = next(each.text for each in findings(whole) if each.title == "Where will they lie?")
    assert "the networks are better than an average of the training patients' new lesions" in where
    assert "The exact law of the simulation gains" in where
    assert "by the rule of MSSEG-2, where samples of the exact law of the simulation have" in where
    assert where_section(report) in render_markdown(whole)
    worse = replace(report, maps=report.maps | {NETWORKS: report.maps[RINGS]})
    text = next(e.text for e in findings(replace(whole, where=worse)) if "Where" in e.title)
    assert "the networks are worse than an average" in text
    no_law = replace(report.samples, methods={NETWORKS: report.samples.methods[NETWORKS]})
    unknown = replace(whole, where=replace(report, samples=no_law))
    text = next(e.text for e in findings(unknown) if "Where" in e.title)
    assert "what a perfect forecast would reach is not known" in text
