"""The cases of an evaluation, measured and drawn on Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lesioncast.bundle.bundle import Bundle
from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.errors import ForecastError
from lesioncast.evaluation.evaluate import CounterfactualCounts
from lesioncast.evaluation.features.image_features import observed_outcome
from lesioncast.evaluation.features.outcomes import (
    OutcomeTable,
    build_measurer,
    cases_with_outcome,
    chunked,
    outcomes_of,
)
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary, Tallies
from lesioncast.evaluation.metrics.mask_comparison import compare_masks
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.runtime import build_sampler, comparison_sessions, device_of
from lesioncast.forecasting.sampling import (
    ArmExpectations,
    EnsembleRequest,
    ModelInput,
    RequestSamples,
    group_by_request,
    plan_batches,
    seeds_of,
)
from lesioncast.imaging.channels import Sessions
from lesioncast.imaging.covariates import fit_covariates
from lesioncast.imaging.lesions import lesion_count
from lesioncast.simulation.ground_truth import counterfactual_net2, has_ground_truth
from storage import Case, Store


@dataclass(frozen=True)
class EvaluationSplit:
    """Training cases for the baselines, validation cases for the calibration, test cases, and those
    of the test cases that are forced onto every arm."""

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    forced: tuple[int, ...]
    validation: tuple[Case, ...] = ()

    @property
    def drawn(self) -> tuple[Case, ...]:
        """The cases that are forecast."""
        return (*self.test, *self.validation)

    def own(self) -> list[EnsembleRequest]:
        """Every drawn case under the arm that it received."""
        return [EnsembleRequest(case.index, case.arm_index) for case in self.drawn]

    def under_every_arm(self, *, arms: int, sessions: Sessions | None) -> list[EnsembleRequest]:
        """The forced cases under every arm, shown the images of `sessions` alone."""
        return [EnsembleRequest(case, arm, sessions) for case in self.forced for arm in range(arms)]


class ForecastSummaries(NamedTuple):
    """What the model answers: `own`, every drawn case under the arm that it received;
    `under_every_arm` the forced cases, and `stated`, what the model states of all cases, both from
    the sessions by which arms are compared."""

    own: Tallies
    under_every_arm: Tallies
    stated: Mapping[int, ArmExpectations]


def select_evaluation_cases(store: Store, settings: EvaluationSettings) -> EvaluationSplit:
    """The cases of the store that an evaluation can use. ForecastError where a split has none."""
    train, test = (cases_with_outcome(store.select(split=split)) for split in ("train", "test"))
    for name, cases in (("training", train), ("test", test)):
        if not cases:
            raise ForecastError(
                f"{store.path}: expected {name} cases with an arm and NET2 at w096, got none; "
                "convert a trial with outcomes, or give store.split_fractions a share for them"
            )
    test = evenly_spaced(test, settings.subjects or len(test))
    forced = evenly_spaced(test, settings.counterfactual_subjects)
    known = cases_with_outcome(store.select(split="val"))
    wanted = settings.validation_subjects
    validation = known if wanted is None else evenly_spaced(known, wanted)
    return EvaluationSplit(
        tuple(train), tuple(test), tuple(case.index for case in forced), tuple(validation)
    )


def reference_arm_index(arm: str, store: Store) -> int:
    """The index of the arm that effects are taken against. ForecastError where there is none."""
    if arm not in store.spec.arms:
        raise ForecastError(
            f"forecast.reference_arm: expected one of {', '.join(store.spec.arms)}, got {arm}"
        )
    return store.spec.arms.index(arm)


def evenly_spaced(cases: Sequence[Case], number: int) -> list[Case]:
    """`number` of the cases, evenly over their order; all where there are fewer."""
    number = min(number, len(cases))
    return [cases[place * len(cases) // number] for place in range(number)]


def measure(
    store: Store, cases: EvaluationSplit, *, workers: int, covariates: Sequence[str] = ()
) -> tuple[OutcomeTable, OutcomeTable, OutcomeTable | None]:
    """Scalars and outcomes of the training, test and validation cases, if any, on Ray actors.

    `covariates` are standardised on the training cases. Raises ConfigError where they have none.
    """
    fitted = fit_covariates(covariates, cases.train)
    chunks = chunked([*cases.train, *cases.drawn])
    build = partial(build_measurer, store.path)
    pieces = ordered_actor_map(build, chunks, workers=workers)
    measured = with_progress(pieces, total=len(chunks), label="chunks of cases measured")
    flat = list(chain.from_iterable(measured))
    train, test = (outcomes_of(split, flat, fitted) for split in (cases.train, cases.test))
    if not cases.validation:
        return train, test, None
    return train, test, outcomes_of(cases.validation, flat, fitted)


def draw_and_summarise(
    store: Store, cases: EvaluationSplit, bundle: Bundle, *, settings: EvaluationSettings, seed: int
) -> ForecastSummaries:
    """What is kept of every ensemble that the evaluation asks for, drawn on Ray actors.

    Masks are compared as they arrive, one ensemble at a time, and let go.
    """
    compared = comparison_sessions(bundle)
    own = cases.own()
    forced = cases.under_every_arm(arms=len(store.spec.arms), sessions=compared)
    requests = list(dict.fromkeys([*own, *forced]))
    seeds = seeds_of(cases.drawn, seed=seed, samples=settings.samples)
    batches = plan_batches(requests, seeds, batch_size=settings.batch_size)
    gpus = settings.gpus_per_worker
    build = partial(
        build_sampler,
        bundle.path,
        store.path,
        device=device_of(gpus),
        inputs=store.table.inputs,
        compared=compared,
    )
    drawn = ordered_actor_map(build, batches, workers=settings.workers, gpus_per_worker=gpus)
    counted = with_progress(drawn, total=len(batches), label="batches drawn")
    tested = {case.index for case in cases.test}
    tallies: dict[EnsembleRequest, EnsembleSummary] = {}
    stated: dict[ModelInput, ArmExpectations] = {}
    for samples in group_by_request(requests, seeds, counted):
        request = samples.request
        scored = request.case in tested and request.sessions is None  # by all that is known
        tallies[request] = tally_of(samples, store, tested=scored)
        stated |= samples.all_stated
    return ForecastSummaries(
        {(asked.case, asked.arm): tallies[asked] for asked in own},
        {(asked.case, asked.arm): tallies[asked] for asked in forced},
        {shown.case: each for shown, each in stated.items() if shown.sessions == compared},
    )


def tally_of(samples: RequestSamples, store: Store, *, tested: bool) -> EnsembleSummary:
    """The counts of one ensemble, and of a `tested` case on its own arm where its lesions lie."""
    case, arm, _ = samples.request
    observed = None
    if tested and store.cases[case].arm_index == arm:
        observed = observed_outcome(store.read(case))
    return EnsembleSummary(
        plain=samples.plain,
        opened=samples.opened,
        stated=samples.stated,
        spatial=None
        if observed is None
        else compare_masks(samples.masks, observed, store.spec.spacing),
    )


def true_counts(store: Store, cases: EvaluationSplit) -> CounterfactualCounts | None:
    """The true lesions of the test cases under every arm; None for a trial that is not simulated.

    Raises StorageError where a simulated trial lacks a file.
    """
    bids, arms = Path(store.table.bids), store.spec.arms
    if not has_ground_truth(bids):
        return None
    return {
        (case.index, arm): lesion_count(mask, store.spec.spacing)
        for case in cases.test
        for arm, mask in enumerate(counterfactual_net2(bids, case.subject, case.grid, arms=arms))
    }
