"""Score where on Ray: fit the baselines on training cases, then score every test case."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from lesioncast.arrays import Bools, Floats, Ints, evenly_spaced
from lesioncast.bundle.bundle import Bundle
from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummaries
from lesioncast.evaluation.metrics.rng import RngStream
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.evaluation.where.atlas import Voxels, atlas_of, sum_of_masks
from lesioncast.evaluation.where.case_scores import Baselines, build_case_scorer, masks_of
from lesioncast.evaluation.where.mask_draws import StoredLesions
from lesioncast.evaluation.where.measurements import WhereMeasurements, WhereTask
from lesioncast.evaluation.where.rings import fit_ring_rates, ring_counts
from lesioncast.forecasting.runtime import device_of
from lesioncast.simulation.settings import SimulationSettings
from storage import Store

# Each number is the most cases that are used, evenly over all of them: active training cases that
# fit the rates of the rings, active test cases whose images are exchanged, and test cases whose
# sampled masks are scored.
RING_CASES = 120
RELIANCE_CASES = 30
SAMPLED_CASES = 120
# Cases that figures show, by their place in the order of new-lesion voxels of active test cases.
FEW, MEDIAN, MANY = 0.2, 0.5, 0.9


@dataclass(frozen=True)
class WhereInputs:
    """What where is scored from: outcomes of training and test cases, and sampled masks.

    `simulation` are the settings of a simulated trial; None leaves the exact law out. `opening`
    says whether forecasts state lesions counted after the opening.
    """

    train: OutcomeTable
    test: OutcomeTable
    factual: EnsembleSummaries
    simulation: SimulationSettings | None
    seed: int
    opening: bool = False


def measure_where(
    store: Store, bundle: Bundle, inputs: WhereInputs, settings: EvaluationSettings
) -> WhereMeasurements:
    """Return the scores of every map and of every method's sampled masks of the test cases."""
    baselines = fit_baselines(store, inputs.train)
    tasks = plan_tasks(inputs, samples=settings.samples)
    gpus = settings.gpus_per_worker
    build = partial(
        build_case_scorer,
        bundle.path,
        store.path,
        baselines,
        inputs.simulation,
        device=device_of(gpus),
    )
    scored = ordered_actor_map(build, tasks, workers=settings.workers, gpus_per_worker=gpus)
    cases = with_progress(scored, total=len(tasks), label="maps of cases scored")
    return WhereMeasurements(
        cases=tuple(cases),
        mean_voxels=mean_voxels_by_arm(inputs.train, arms=len(store.spec.arms)),
        ring_rates=baselines.ring_rates,
    )


def fit_baselines(store: Store, train: OutcomeTable) -> Baselines:
    """Return the atlas of the training cases' new lesions, rates of rings, and the lesions."""
    spacing = store.spec.spacing
    atlas = atlas_of(sum_of_masks(train.net2_voxels, store.spec.slab), spacing)
    active = [row for row, voxels in enumerate(train.net2_voxels) if len(voxels)]
    counts = [
        ring_counts(store.read(train.case[row]), train.net2_voxels[row], atlas, spacing)
        for row in evenly_spaced(active, RING_CASES)
    ]
    masks = (masks_of((train.net2_voxels[row],), store.spec.slab)[0] for row in active)
    return Baselines(atlas, fit_ring_rates(counts), StoredLesions.of_masks(masks))


def mean_voxels_by_arm(train: OutcomeTable, *, arms: int) -> Floats:
    """Return the mean new-lesion voxels of each arm's active training cases, [arm].

    An arm without active cases has the mean over all arms; NaN if no case is active.
    """
    voxels = np.array([len(places) for places in train.net2_voxels], np.float64)
    active = voxels > 0
    overall = voxels[active].mean() if active.any() else np.nan
    means = [voxels[active & (train.arm == arm)] for arm in range(arms)]
    return np.array([mean.mean() if len(mean) else overall for mean in means])


def plan_tasks(inputs: WhereInputs, *, samples: int) -> list[WhereTask]:
    """Return the task of each test case, in order."""
    test = inputs.test
    size = np.array([len(places) for places in test.net2_voxels])
    others = exchange_partners(test.arm, size > 0)
    exchanged = set(evenly_spaced(sorted(others), RELIANCE_CASES))
    sampled = set(evenly_spaced(range(len(test.case)), SAMPLED_CASES))
    shown = {case_at(size, share) for share in (FEW, MEDIAN, MANY)}
    rng = np.random.default_rng([RngStream.CLIMATOLOGY, inputs.seed])
    return [
        WhereTask(
            case=case,
            sampled=inputs.factual[case, int(arm)].lesion_voxels,
            climatology=_masks_of_arm(inputs.train, int(arm), samples, rng),
            other=test.case[others[row]] if row in exchanged else None,
            score_samples=row in sampled,
            keep_maps=row in shown,
            p_active=inputs.factual[case, int(arm)].p_active(opening=inputs.opening),
            expected=inputs.factual[case, int(arm)].expected_outcomes(opening=inputs.opening),
        )
        for row, (case, arm) in enumerate(zip(test.case, test.arm, strict=True))
    ]


def exchange_partners(arm: Ints, active: Bools) -> dict[int, int]:
    """Return, for each active row, the next active row of its arm, which lends its images.

    Rows whose arm has no other active case are left out.
    """
    partners: dict[int, int] = {}
    for one in np.unique(arm[active]):
        rows = np.flatnonzero(active & (arm == one)).tolist()
        if len(rows) > 1:
            partners |= dict(zip(rows, [*rows[1:], rows[0]], strict=True))
    return partners


def case_at(lesion_voxels: Ints, share: float) -> int | None:
    """Return the active row at a share of their order by new-lesion voxels; None without any.

    A share of 0.5 is the median.
    """
    active = np.flatnonzero(lesion_voxels > 0)
    if not len(active):
        return None
    place = min(int(share * len(active)), len(active) - 1)
    return int(active[np.argsort(lesion_voxels[active], kind="stable")[place]])


def _masks_of_arm(
    train: OutcomeTable, arm: int, number: int, rng: np.random.Generator
) -> tuple[Voxels, ...]:
    """Return the observed masks of `number` random training cases of an arm, or of any arm."""
    rows = np.flatnonzero(train.arm == arm)
    rows = rows if len(rows) else np.arange(len(train.arm))
    return tuple(train.net2_voxels[row] for row in rng.choice(rows, number))
