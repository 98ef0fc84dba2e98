"""Forecast whole subjects: plan and draw the samples, then write files on each subject's own grid.

The forecast job and the service share `write_forecasts`. They differ only in who draws the samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lesioncast.bundle.compatibility import resolve_sessions
from lesioncast.bundle.description import BundleDescription
from lesioncast.bundle.typicality import read_typicality
from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.errors import ForecastError
from lesioncast.forecasting.disclaimers import (
    brain_mask_warnings,
    bundle_p_active_errors,
    bundle_warnings,
    sessions_note,
)
from lesioncast.forecasting.ensemble import Ensemble
from lesioncast.forecasting.output.bids import (
    figure_path,
    new_map_path,
    page_path,
    remove_other_maps,
    sidecar,
    summary_path,
    write_probability,
)
from lesioncast.forecasting.output.calibrated import calibration_notes
from lesioncast.forecasting.output.display import make_view
from lesioncast.forecasting.output.members import member_notes
from lesioncast.forecasting.output.summary import (
    ForecastSummary,
    RunProvenance,
    SubjectInfo,
    summarise,
    write_summary,
)
from lesioncast.forecasting.output.typicality import (
    KnownLimits,
    missing_covariate_warnings,
    summarise_typicality,
    typicality_warnings,
)
from lesioncast.forecasting.runtime import build_forecast_sampler, device_of
from lesioncast.forecasting.sampling import (
    Batch,
    EnsembleRequest,
    SampleBatch,
    Seeds,
    ensembles,
    plan_batches,
    seeds_of,
)
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.forecasting.training_data import data_notes, simulated_bundle_warnings
from lesioncast.forecasting.view.build import ViewPatient, finished_view, parcellation_of
from lesioncast.forecasting.view.kept_samples import KeptSamples
from lesioncast.forecasting.view.numbers import finished_numbers
from lesioncast.forecasting.view.saved_page import saved_page
from lesioncast.imaging.channels import CURRENT, MASKS, OUTCOME, SESSIONS
from lesioncast.imaging.covariates import covariate_presence
from lesioncast.imaging.intervals import interval_notes
from lesioncast.imaging.lesions import lesion_count
from storage import Case, Store, to_source_grid
from storage.atomic import atomic_write_text
from storage.export.bids_names import derived_names
from storage.trial.dataset import REFERENCE_FLAIR

Background = Callable[[Case], nib.Nifti1Image]
"""Returns the image that the figure of a case shows under its probabilities."""


@dataclass(frozen=True, kw_only=True)
class ForecastRun:
    """Everything that the forecasts of one run share."""

    #: Samples, reference arm, opening, sessions and figure.
    settings: ForecastSettings
    #: Bundle, seed and notes; its seed is the seed of the run.
    provenance: RunProvenance
    #: Folder of the BIDS derivative that is written.
    out: Path
    #: Background of the figures.
    background: Background


@dataclass(frozen=True)
class SubjectForecast:
    """Forecast of one subject, before it is written."""

    #: Facts about the subject.
    subject: SubjectInfo
    #: Numbers under every arm.
    summary: ForecastSummary
    #: Probability of a lesion in each voxel of the source grid, by arm.
    probability: Mapping[str, nib.Nifti1Image]
    #: Observed NET2 mask at outcome in the slab [s, h, w], where it is known.
    observed: npt.NDArray[np.uint8] | None


@dataclass(frozen=True)
class ForecastPlan:
    """The ensembles of a run: every case under every arm, arms of a case on the same seeds."""

    #: One request for each case and arm, case by case.
    requests: tuple[EnsembleRequest, ...]
    #: Seeds of each case, by its index.
    seeds: Mapping[int, Seeds]

    def batches(self, size: int) -> list[Batch]:
        """Cut the samples, request by request, into batches that share forward passes."""
        return plan_batches(self.requests, self.seeds, batch_size=size)


def subjects_to_forecast(store: Store, names: Sequence[str], *, number: int) -> list[Case]:
    """Return the named subjects, or by default the first `number` of the test split.

    A store without splits gives all of its subjects. Raise ForecastError if there are none.
    """
    if names:
        return [store.case(name) for name in names]
    cases = store.select(split="test")[:number] or store.select(split="unlabelled")
    if not cases:
        raise ForecastError(
            f"{store.path}: expected test or unlabelled cases, got neither; name --subjects"
        )
    return cases


def check_reference_arm(reference: str, arms: Sequence[str]) -> None:
    """Raise ForecastError if the reference arm is not among the arms."""
    if reference not in arms:
        raise ForecastError(
            f"forecast.reference_arm: expected one of {', '.join(arms)}, got {reference}"
        )


def run_provenance(
    bundle: BundleDescription,
    store: Store,
    *,
    seed: int,
    sessions: Sequence[str],
    notes: Sequence[str] = (),
) -> RunProvenance:
    """Collect what a forecast says of its origin: bundle, data, sessions and warnings.

    No `sessions` stand for all that the bundle supports. `notes` follow the notes on the data and
    the sessions. Raise ForecastError if the bundle was not trained for these sessions or carries
    the evaluation of another bundle.
    """
    sessions = resolve_sessions(bundle, sessions)
    return RunProvenance(
        bundle.digest,
        seed,
        notes=(
            *data_notes(bundle, store),
            sessions_note(sessions, bundle.config.visits),
            *notes,
        ),
        sessions=sessions,
        condition=tuple(
            name for name in bundle.config.model.control.condition if name.split("/")[0] in sessions
        ),
        covariates=bundle.config.model.covariates,
        identifiability_warnings=bundle_warnings(bundle.path, bundle.digest),
        first_warnings=simulated_bundle_warnings(bundle, store),
        typicality=read_typicality(bundle.path, bundle.digest),
        p_active_errors=bundle_p_active_errors(bundle.path, bundle.digest),
        visits=bundle.config.visits,
        brain_mask_share=bundle.config.brain_mask_share,
        intervals=bundle.config.intervals,
        touching_ratios=bundle.config.touching_ratios,
        calibration=bundle.calibration,
    )


def plan_forecast(
    store: Store,
    cases: Sequence[Case],
    *,
    settings: ForecastSettings,
    seed: int,
    arms: Sequence[str] = (),
) -> ForecastPlan:
    """Plan the samples of every case under every arm, or under `arms` alone."""
    names, sessions = store.spec.arms, settings.sessions or None
    requests = tuple(
        EnsembleRequest(case.index, names.index(arm), sessions)
        for case in cases
        for arm in arms or names
    )
    return ForecastPlan(requests, seeds_of(cases, seed=seed, samples=settings.samples))


def draw_forecast(
    cases: Sequence[Case], store: Store, bundle: Path, *, settings: ForecastSettings, seed: int
) -> Iterator[SampleBatch]:
    """Draw the batches of `plan_forecast` in order, on Ray actors that each hold the bundle."""
    gpus = settings.gpus_per_worker
    batches = plan_forecast(store, cases, settings=settings, seed=seed).batches(settings.batch_size)
    build = partial(
        build_forecast_sampler,
        bundle,
        store.path,
        device=device_of(gpus),
        inputs=store.table.inputs,
    )
    drawn = ordered_actor_map(build, batches, workers=settings.workers, gpus_per_worker=gpus)
    return with_progress(drawn, total=len(batches), label="batches drawn")


def write_forecasts(
    store: Store,
    cases: Sequence[Case],
    drawn: Iterable[SampleBatch],
    run: ForecastRun,
    *,
    arms: Sequence[str] = (),
) -> Iterator[ForecastSummary]:
    """Write each case's forecast as soon as its samples are drawn, and yield its summary.

    `drawn` holds the samples of `plan_forecast` for the same cases, settings, seed and `arms`, in
    order; the batches may be of any size. No `arms` stand for all arms of the store. Raise
    ForecastError if the reference arm is not among the arms.
    """
    arms = tuple(arms) or store.spec.arms
    check_reference_arm(run.settings.reference_arm, arms)
    plan = plan_forecast(store, cases, settings=run.settings, seed=run.provenance.seed, arms=arms)
    stream = ensembles(plan.requests, plan.seeds, drawn)
    for case in cases:
        # The stream holds the ensembles of a case one after the other, in the order of the arms.
        yield write_forecast(store, case, {arm: next(stream) for arm in arms}, run)


def write_forecast(
    store: Store, case: Case, by_arm: Mapping[str, Ensemble], run: ForecastRun
) -> ForecastSummary:
    """Write one subject's probability maps, figure, page and summary; return the summary."""
    # Imports matplotlib, which forecasts in memory do not need.
    from lesioncast.forecasting.output.figure import forecast_figure, save

    forecast = assemble_forecast(
        store, case, by_arm, settings=run.settings, provenance=run.provenance
    )
    names = derived_names(case, store.spec.visits)
    paths = {arm: new_map_path(run.out, names, arm) for arm in by_arm}
    for arm, image in forecast.probability.items():
        record = sidecar(
            by_arm[arm],
            arm=arm,
            subject=forecast.subject,
            names=names,
            provenance=run.provenance,
            calibrated=forecast.summary.arms[arm].calibrated,
        )
        write_probability(paths[arm], image, record)
    remove_other_maps(run.out, case.subject, paths.values())
    observed = forecast.observed
    truth = None if observed is None else to_source_grid(observed, case.grid, order=0)
    view = make_view(run.background(case), forecast.probability, truth)
    figure = forecast_figure(view, forecast.summary, slices=run.settings.slices)
    save(figure, figure_path(run.out, case.subject))
    patient = ViewPatient(case, store, truth={})
    numbers = finished_numbers(
        forecast.summary, KeptSamples({}, {}), errors=run.provenance.p_active_errors
    )
    page = finished_view(patient, forecast.summary, numbers, forecast.probability)
    atomic_write_text(page_path(run.out, case.subject), saved_page(page))
    # The summary comes last: a subject with a summary has all of its files.
    write_summary(summary_path(run.out, case.subject), forecast.summary)
    return forecast.summary


def assemble_forecast(
    store: Store,
    case: Case,
    by_arm: Mapping[str, Ensemble],
    *,
    settings: ForecastSettings,
    provenance: RunProvenance,
) -> SubjectForecast:
    """Return one subject's forecast: its summary, and its probability maps on the source grid."""
    observed = _observed_mask(store, case)
    spacing, opening = store.spec.spacing, settings.apply_opening
    covariates = covariate_presence(provenance.covariates, case)
    limits = KnownLimits(
        # Every arm has the same inputs.
        clipped=by_arm[settings.reference_arm].clipped,
        condition=provenance.condition,
        days=tuple(
            interval_notes(
                case.intervals,
                store.spec.visits,
                trained=provenance.intervals,
                visits=provenance.visits,
            )
        ),
    )
    typicality = summarise_typicality(provenance.typicality, store, case, limits)
    subject = SubjectInfo(
        case.subject,
        case.arm,
        observed_lesions=None
        if observed is None
        else lesion_count(observed.astype(bool), spacing, opening=opening),
        covariates=covariates,
        case_digest=case.digest,
        typicality=typicality,
        warnings=(
            *typicality_warnings(
                typicality, has_reference=provenance.typicality is not None, arms=tuple(by_arm)
            ),
            *brain_mask_warnings(
                provenance.brain_mask_share, cleared=store.cleared_by_brain_mask(case)
            ),
            *missing_covariate_warnings(covariates),
        ),
        notes=(
            *calibration_notes(
                provenance.calibration,
                by_arm[settings.reference_arm].expected_outcomes(opening=opening),
                tuple(by_arm),
            ),
            *member_notes(
                {arm: each.expected_outcomes(opening=opening) for arm, each in by_arm.items()}
            ),
        ),
        parcellation=parcellation_of(store, case),
    )
    return SubjectForecast(
        subject=subject,
        summary=summarise(
            subject,
            by_arm,
            reference=settings.reference_arm,
            opening=opening,
            spacing=spacing,
            provenance=provenance,
        ),
        probability={
            arm: to_source_grid(ensemble.probability, case.grid, order=1)
            for arm, ensemble in by_arm.items()
        },
        observed=observed,
    )


def _observed_mask(store: Store, case: Case) -> npt.NDArray[np.uint8] | None:
    """Return the NET2 mask at outcome [s, h, w], or None if it is not known."""
    if not case.has_outcome:
        return None
    return np.asarray(store.read(case.index).masks[SESSIONS.index(OUTCOME), MASKS.index("net2")])


def background_source(store: Store, bids: Path) -> Background:
    """Show the subjects' own FLAIR files if the BIDS folder exists, else the store's FLAIR."""
    return bids_flair(bids) if bids.is_dir() else stored_flair(store)


def stored_flair(store: Store) -> Background:
    """Show the slab's current FLAIR on the source grid, for stores without their BIDS folder."""

    def background(case: Case) -> nib.Nifti1Image:
        flair = store.read(case.index).flair[SESSIONS.index(CURRENT)].astype(np.float32)
        return to_source_grid(flair + 1, case.grid, order=1)  # black is 0, as outside the slab

    return background


def bids_flair(bids: Path) -> Background:
    """Show the subject's own FLAIR file at the current session, as sharp as it was acquired."""

    def background(case: Case) -> nib.Nifti1Image:
        path = bids / case.sources[REFERENCE_FLAIR]
        if not path.is_file():
            raise ForecastError(
                f"{case.subject}: expected {path}, from which the store was made, got none; "
                "give the trial's folder with --bids"
            )
        return nib.load(path)

    return background
