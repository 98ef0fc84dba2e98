"""Measure and sample the cases of an evaluation on Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from lesioncast.arrays import evenly_spaced
from lesioncast.bundle.bundle import Bundle
from lesioncast.bundle.compatibility import comparison_sessions
from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.errors import ForecastError
from lesioncast.evaluation.analysis.scoring import CounterfactualCounts
from lesioncast.evaluation.closed_form import closed_form_summaries, has_closed_form
from lesioncast.evaluation.features.censoring_table import CensoringTable, censoring_table
from lesioncast.evaluation.features.image_features import lesion_voxels, observed_outcome
from lesioncast.evaluation.features.outcomes import (
    OutcomeTable,
    build_measurer,
    cases_with_outcome,
    chunk_cases,
    outcome_table,
)
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummaries, EnsembleSummary
from lesioncast.evaluation.metrics.mask_comparison import compare_masks
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.runtime import build_sampler, device_of
from lesioncast.forecasting.sampling import (
    ArmExpectations,
    EnsembleRequest,
    ModelInput,
    RequestSamples,
    group_by_request,
    independent_seeds,
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
    """The cases of an evaluation.

    Training cases fit the baselines, validation cases the calibration. `counterfactual` are the
    indices of the test cases that are sampled under every arm, where no closed form states the
    count. Cases `without_outcome` have an arm and are measured only.
    """

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    counterfactual: tuple[int, ...]
    validation: tuple[Case, ...] = ()
    without_outcome: tuple[Case, ...] = ()

    @property
    def forecast(self) -> tuple[Case, ...]:
        """Return the cases that are forecast."""
        return (*self.test, *self.validation)

    def factual_requests(self, *, validation: bool) -> list[EnsembleRequest]:
        """Request every test case, and with `validation` every validation case, under its arm."""
        cases = self.forecast if validation else self.test
        return [EnsembleRequest(case.index, case.arm_index) for case in cases]

    def counterfactual_requests(
        self, *, arms: int, sessions: Sessions | None
    ) -> list[EnsembleRequest]:
        """Request the counterfactual cases under every arm, from the images of `sessions` alone."""
        return [
            EnsembleRequest(case, arm, sessions)
            for case in self.counterfactual
            for arm in range(arms)
        ]


@dataclass(frozen=True)
class OutcomeTables:
    """Measured outcomes of each split; `validation` is None without validation cases.

    `censoring` holds these cases and those without an outcome, the test cases first.
    """

    train: OutcomeTable
    test: OutcomeTable
    validation: OutcomeTable | None
    censoring: CensoringTable


@dataclass(frozen=True)
class ForecastSummaries:
    """What is kept of the ensembles of an evaluation.

    `factual` covers every forecast case under the arm that it received, from all its images.
    `expected` gives by case what the prognostic prior expects under every arm. It is empty for a
    model without one. `counterfactual` covers the counterfactual cases under every arm, where no
    closed form states the count. Both are from the images of the sessions by which arms are
    compared.
    """

    factual: EnsembleSummaries
    counterfactual: EnsembleSummaries
    expected: Mapping[int, ArmExpectations]


def select_evaluation_cases(store: Store, settings: EvaluationSettings) -> EvaluationSplit:
    """Select the cases of the store that an evaluation can use.

    Raise ForecastError where the training or the test split has none.
    """
    train, test = (cases_with_outcome(store.select(split=split)) for split in ("train", "test"))
    for name, cases in (("training", train), ("test", test)):
        if not cases:
            raise ForecastError(
                f"{store.path}: expected {name} cases with an arm and NET2 at outcome, got none; "
                "convert a trial with outcomes, or give store.split_fractions a share for them"
            )
    test = evenly_spaced(test, settings.subjects or len(test))
    counterfactual = evenly_spaced(test, settings.counterfactual_subjects)
    validation = cases_with_outcome(store.select(split="val"))
    if settings.validation_subjects is not None:
        validation = evenly_spaced(validation, settings.validation_subjects)
    return EvaluationSplit(
        train=tuple(train),
        test=tuple(test),
        counterfactual=tuple(case.index for case in counterfactual),
        validation=tuple(validation),
        without_outcome=tuple(
            case for case in store.cases if case.arm is not None and not case.has_outcome
        ),
    )


def reference_arm_index(arm: str, store: Store) -> int:
    """Return the index of the arm that effects are taken against.

    Raise ForecastError where the store has no such arm.
    """
    if arm not in store.spec.arms:
        raise ForecastError(
            f"forecast.reference_arm: expected one of {', '.join(store.spec.arms)}, got {arm}"
        )
    return store.spec.arms.index(arm)


def measure_outcomes(
    store: Store, cases: EvaluationSplit, *, workers: int, covariates: Sequence[str] = ()
) -> OutcomeTables:
    """Measure image features and outcomes of all cases on Ray actors.

    `covariates` are standardised on the training cases. Raise ConfigError where these lack one.
    """
    fitted = fit_covariates(covariates, cases.train)
    chunks = chunk_cases([*cases.train, *cases.forecast, *cases.without_outcome])
    build = partial(build_measurer, store.path)
    measured = with_progress(
        ordered_actor_map(build, chunks, workers=workers),
        total=len(chunks),
        label="chunks of cases measured",
    )
    measurements = list(chain.from_iterable(measured))
    train, test = (outcome_table(of, measurements, fitted) for of in (cases.train, cases.test))
    validation = outcome_table(cases.validation, measurements, fitted) if cases.validation else None
    tables = [test, train, *([] if validation is None else [validation])]
    by_case = {entry.case: entry for entry in measurements}
    return OutcomeTables(
        train,
        test,
        validation,
        censoring_table(tables, cases.without_outcome, by_case, fitted),
    )


def sample_and_summarise(
    store: Store,
    cases: EvaluationSplit,
    bundle: Bundle,
    *,
    settings: EvaluationSettings,
    seed: int,
    opening: bool,
) -> ForecastSummaries:
    """Sample every ensemble of the evaluation on Ray actors and keep a summary of each.

    The samples of a case are independent, as the fair scores assume. Masks are compared as they
    arrive and then discarded, one ensemble at a time, so that memory does not grow with the number
    of cases. Validation cases are not sampled where the bundle states the count in closed form;
    `opening` says whether lesions are counted after the opening.
    """
    sessions = comparison_sessions(bundle)
    closed_form = has_closed_form(bundle, opening=opening)
    factual = cases.factual_requests(validation=not closed_form)
    # Before sampling, whose actors keep their CPUs until this function returns: on a cluster that
    # has no other CPUs, actors that are asked for afterwards would never start.
    validation = (
        closed_form_summaries(store, cases.validation, bundle.path, workers=settings.workers)
        if closed_form and cases.validation
        else {}
    )
    # A prior states what is expected under every arm, so that no sample is needed.
    counterfactual = (
        []
        if closed_form
        else cases.counterfactual_requests(arms=len(store.spec.arms), sessions=sessions)
    )
    # Without sessions left out, both lists share requests; each is sampled once.
    requests = list(dict.fromkeys([*factual, *counterfactual]))
    seeds = seeds_of(cases.forecast, seed=seed, samples=settings.samples, scheme=independent_seeds)
    batches = plan_batches(requests, seeds, batch_size=settings.batch_size)
    gpus = settings.gpus_per_worker
    build = partial(
        build_sampler,
        bundle.path,
        store.path,
        device=device_of(gpus),
        inputs=store.table.inputs,
        comparison_sessions=sessions,
    )
    sampled = ordered_actor_map(build, batches, workers=settings.workers, gpus_per_worker=gpus)
    progress = with_progress(sampled, total=len(batches), label="batches sampled")
    summaries: dict[EnsembleRequest, EnsembleSummary] = {}
    expected: dict[ModelInput, ArmExpectations] = {}
    for samples in group_by_request(requests, seeds, progress):
        request = samples.request
        # Masks are compared only where the model saw all images. Those of validation cases give
        # thresholds.
        compare = request.sessions is None
        summaries[request] = summarise_samples(samples, store, compare=compare)
        expected |= samples.all_expected
    return ForecastSummaries(
        {(request.case, request.arm): summaries[request] for request in factual} | validation,
        {(request.case, request.arm): summaries[request] for request in counterfactual},
        {
            model_input.case: outcomes
            for model_input, outcomes in expected.items()
            if model_input.sessions == sessions
        },
    )


def summarise_samples(samples: RequestSamples, store: Store, *, compare: bool) -> EnsembleSummary:
    """Return the counts of one ensemble and, where `compare`, its masks against the observed one.

    Masks can be compared only under the factual arm, whose outcome was observed.
    """
    case, arm, _ = samples.request
    observed = None
    if compare and store.cases[case].arm_index == arm:
        observed = observed_outcome(store.read(case))
    return EnsembleSummary(
        plain=samples.plain,
        opened=samples.opened,
        expected=samples.expected,
        spatial=None
        if observed is None
        else compare_masks(samples.masks, observed, store.spec.spacing),
        lesion_voxels=()
        if observed is None
        else tuple(lesion_voxels(mask) for mask in samples.masks),
    )


def true_counts(
    store: Store, cases: EvaluationSplit, bids: Path, *, opening: bool
) -> CounterfactualCounts | None:
    """Return the true lesions of the test cases under every arm; None where they are not known.

    With `opening` they are counted after the opening.

    They are known of simulated subjects whose trial lies in `bids` with its ground truth. Raise
    StorageError where that lacks a file.
    """
    arms = store.spec.arms
    if not (store.table.trial.simulated and has_ground_truth(bids)):
        return None
    return {
        (case.index, arm): lesion_count(mask, store.spec.spacing, opening=opening)
        for case in cases.test
        for arm, mask in enumerate(counterfactual_net2(bids, case.subject, case.grid, arms=arms))
    }
