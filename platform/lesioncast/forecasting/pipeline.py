"""The forecast of whole subjects: ensembles in, files on their own grid out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.errors import ForecastError
from lesioncast.forecasting.ensemble import Ensemble
from lesioncast.forecasting.output.bids import (
    figure_path,
    summary_path,
    write_probability,
)
from lesioncast.forecasting.output.display import make_view
from lesioncast.forecasting.output.figure import forecast_figure, save
from lesioncast.forecasting.output.summary import Provenance, Record, SubjectInfo, summarise
from lesioncast.forecasting.runtime import build_sampler, device_of
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
from lesioncast.imaging.channels import CHANNELS, MASKS, SESSIONS
from lesioncast.imaging.covariates import Covariate, covariate_presence
from lesioncast.imaging.lesions import lesion_count
from storage import Case, Store, TrialLayout, to_source_grid
from storage.export.bids_derivative import write_json
from storage.trial.path_patterns import match_subject

Background = Callable[[Case], nib.Nifti1Image]


@dataclass(frozen=True)
class RunProvenance:
    """What all forecasts of a run share: the bundle's digest, the run's seed, remarks, the
    sessions and covariates that the bundle's model sees, and the warnings of its evaluation."""

    bundle: str
    seed: int
    remarks: tuple[str, ...] = ()
    sessions: tuple[str, ...] = SESSIONS[:2]
    covariates: tuple[Covariate, ...] = ()
    warnings: tuple[str, ...] = ()


def subjects_to_forecast(store: Store, names: Sequence[str], *, number: int) -> list[Case]:
    """The named subjects; else the first of the test split; else all of an unlabelled store."""
    if names:
        return [store.case(name) for name in names]
    cases = store.select(split="test")[:number] or store.select(split="unlabelled")
    if not cases:
        raise ForecastError(
            f"{store.path}: expected test or unlabelled cases, got neither; name --subjects"
        )
    return cases


def forecast_batches(
    cases: Sequence[Case], *, arms: int, settings: ForecastSettings, seed: int
) -> tuple[list[EnsembleRequest], dict[int, Seeds], list[Batch]]:
    """Every case under every arm on the same seeds: requests, seeds by case, and batches."""
    sessions = settings.sessions or None
    requests = [EnsembleRequest(case.index, arm, sessions) for case in cases for arm in range(arms)]
    seeds = seeds_of(cases, seed=seed, samples=settings.samples)
    return requests, seeds, plan_batches(requests, seeds, batch_size=settings.batch_size)


def draw_forecast(
    cases: Sequence[Case], store: Store, bundle: Path, *, settings: ForecastSettings, seed: int
) -> Iterator[SampleBatch]:
    """The batches of `forecast_batches` in order, drawn on Ray actors that each hold the bundle."""
    arms, gpus = len(store.spec.arms), settings.gpus_per_worker
    _, _, batches = forecast_batches(cases, arms=arms, settings=settings, seed=seed)
    build = partial(
        build_sampler, bundle, store.path, device=device_of(gpus), inputs=store.table.inputs
    )
    drawn = ordered_actor_map(build, batches, workers=settings.workers, gpus_per_worker=gpus)
    return with_progress(drawn, total=len(batches), label="batches drawn")


def forecast_all(
    store: Store,
    cases: Sequence[Case],
    drawn: Iterable[SampleBatch],
    *,
    settings: ForecastSettings,
    origin: RunProvenance,
    out: Path,
    background: Background,
) -> Iterator[Record]:
    """Writes each case's forecast under `out` as soon as its samples are `drawn`.

    `drawn` are the batches of `forecast_batches`, in order. Yields the summaries.
    """
    arms = store.spec.arms
    if settings.reference_arm not in arms:
        raise ForecastError(
            f"forecast.reference_arm: expected one of {', '.join(arms)}, "
            f"got {settings.reference_arm}"
        )
    requests, seeds, _ = forecast_batches(
        cases, arms=len(arms), settings=settings, seed=origin.seed
    )
    stream = ensembles(requests, seeds, drawn)
    for case in cases:
        by_arm = {arm: next(stream) for arm in arms}
        yield write_forecast(
            store, case, by_arm, settings=settings, origin=origin, out=out, background=background
        )


def write_forecast(
    store: Store,
    case: Case,
    by_arm: Mapping[str, Ensemble],
    *,
    settings: ForecastSettings,
    origin: RunProvenance,
    out: Path,
    background: Background,
) -> Record:
    """One subject's probability maps, summary and figure. Returns the summary."""
    observed = _observed(store, case)
    spacing = store.spec.spacing
    subject = SubjectInfo(
        case.subject,
        case.arm,
        None
        if observed is None
        else lesion_count(observed.astype(bool), spacing, opening=settings.apply_opening),
        covariate_presence(origin.covariates, case),
    )
    provenance = Provenance(
        origin.bundle, case.digest, origin.seed, origin.remarks, origin.sessions, origin.warnings
    )
    images = {
        arm: to_source_grid(ensemble.probability, case.grid, order=1)
        for arm, ensemble in by_arm.items()
    }
    for arm, image in images.items():
        write_probability(out, image, by_arm[arm], arm=arm, subject=subject, provenance=provenance)
    record = summarise(
        subject,
        by_arm,
        reference=settings.reference_arm,
        opening=settings.apply_opening,
        spacing=spacing,
        provenance=provenance,
    )
    truth = None if observed is None else to_source_grid(observed, case.grid, order=0)
    view = make_view(background(case), images, truth)
    save(forecast_figure(view, record, slices=settings.slices), figure_path(out, case.subject))
    write_json(summary_path(out, case.subject), record)
    return record


def _observed(store: Store, case: Case) -> npt.NDArray[np.uint8] | None:
    """The NET2 mask at w096, where it is known."""
    session = SESSIONS.index("w096")
    if not case.present[session, CHANNELS.index("net2")]:
        return None
    return np.asarray(store.read(case.index).masks[session, MASKS.index("net2")])


def background_source(store: Store, bids: Path, layout: TrialLayout) -> Background:
    """The subjects' own FLAIR where the BIDS folder is at hand, else what the store keeps."""
    return bids_flair(bids, layout) if bids.is_dir() else stored_flair(store)


def stored_flair(store: Store) -> Background:
    """The slab's FLAIR at w048 on the source grid, for stores without their BIDS folder."""

    def background(case: Case) -> nib.Nifti1Image:
        flair = store.read(case.index).flair[SESSIONS.index("w048")].astype(np.float32)
        return to_source_grid(flair + 1, case.grid, order=1)  # black is 0, as outside the slab

    return background


def bids_flair(bids: Path, layout: TrialLayout) -> Background:
    """The subject's own FLAIR file at w048, as sharp as it was acquired."""

    def background(case: Case) -> nib.Nifti1Image:
        session = layout.sessions[SESSIONS.index("w048")]
        made_from = (
            p for p in case.digests if match_subject(p, layout.flair, session=session) is not None
        )
        path = bids / next(made_from, "a FLAIR")
        if not path.is_file():
            raise ForecastError(
                f"{case.subject}: expected {path} at {session}, got none; "
                "give the --bids folder (and the --mapping) that the store was made from"
            )
        return nib.load(path)

    return background
