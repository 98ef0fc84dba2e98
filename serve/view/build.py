"""Build the view of a forecast: FLAIR, lesions, and the probability of each arm.

A finished forecast is read from its files, so that a voxel of the view equals the voxel of the
probability map. An unfinished one is built from the samples that are drawn so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lesioncast.forecasting.disclaimers import POSITIVITY, PREDICTED, RESEARCH_USE
from lesioncast.forecasting.output.bids import forecast_path, summary_path
from lesioncast.forecasting.output.summary import ForecastSummary, RunProvenance, read_summary
from lesioncast.imaging.lesions import LesionCounts
from lesioncast.simulation.ground_truth import counterfactual_net2
from serve.artifacts import kept_samples_path, result_dir
from serve.db.models import DrawnBlock, ForecastJob
from serve.view.encode import LayerWriter, encode_view
from serve.view.kept_samples import KeptSamples, keep_samples, read_kept_samples
from serve.view.numbers import finished_numbers, partial_numbers
from serve.view.schemas import VIEW_SCHEMA, ArmNumbers, ViewHeader
from serve.view.volumes import ViewGrid
from storage import Case, Store, VisitSchedule

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ViewSource:
    """What a view is built from: a job, its patient, and where results lie."""

    job: ForecastJob
    case: Case
    store: Store
    artifacts: Path
    #: Digest of the bundle.
    bundle: str
    #: Labels of the sessions that the bundle was trained on.
    visits: VisitSchedule
    #: Folder of the simulated trial with the true counterfactuals, in demo mode alone.
    truth: Path | None
    #: Whether lesions are counted after the opening.
    opening: bool
    #: Warnings of the bundle's evaluation.
    warnings: tuple[str, ...] = ()


def build_finished_view(source: ViewSource) -> bytes:
    """Return the view of a succeeded forecast. Raises FileNotFoundError if its files are gone."""
    job = source.job
    folder = result_dir(source.artifacts, job.id)
    summary = read_summary(summary_path(folder, job.request.subject))
    kept = finished_samples(source)
    grid = ViewGrid(source.case.grid)
    maps = {
        arm: grid.from_file(nib.load(forecast_path(folder, job.request.subject, arm)))
        for arm in summary.arms
    }
    writer = _writer(source, grid)
    writer.add_probabilities(maps)
    header = _header(source, writer, finished_numbers(summary, kept), summary)
    return encode_view(header, bytes(writer.body))


def build_partial_view(source: ViewSource, blocks: Sequence[DrawnBlock]) -> bytes:
    """Return the view of an unfinished forecast, from the samples in `blocks`."""
    job, grid = source.job, ViewGrid(source.case.grid)
    masks, lesions = masks_by_arm(blocks), _lesions_by_arm(blocks)
    writer = _writer(source, grid)
    writer.add_probabilities(
        {
            arm: grid.from_slab(np.mean(masks[arm], axis=0, dtype=np.float32), order=1)
            for arm in job.request.arms
            if arm in masks
        }
    )
    numbers = partial_numbers(
        lesions,
        keep_samples(masks, parcellation_of(source.store, source.case)),
        arms=job.request.arms,
        reference=job.request.reference_arm,
        received=source.case.arm,
        opening=source.opening,
    )
    return encode_view(_header(source, writer, numbers, None), bytes(writer.body))


def finished_samples(source: ViewSource) -> KeptSamples:
    """Return the kept samples of a finished forecast; none if it has none, as older ones."""
    job = source.job
    try:
        return read_kept_samples(kept_samples_path(source.artifacts, job.id), job.request.arms)
    except FileNotFoundError:
        return KeptSamples({}, {})


def masks_by_arm(blocks: Sequence[DrawnBlock]) -> dict[str, Masks]:
    """Return the masks of the drawn blocks by arm, [k, s, h, w], in the order of seeds."""
    ordered = sorted(blocks, key=lambda block: block.first_seed_index)
    return {
        arm: np.concatenate([block.to_batch().masks() for block in ordered if block.arm == arm])
        for arm in dict.fromkeys(block.arm for block in ordered)
    }


def parcellation_of(store: Store, case: Case) -> npt.NDArray[np.integer] | None:
    """Return the parcellation of a case on the slab, None if it has none."""
    return store.read(case.index).parcellation if case.parcellation else None


def _lesions_by_arm(blocks: Sequence[DrawnBlock]) -> dict[str, list[LesionCounts]]:
    lesions: dict[str, list[LesionCounts]] = {}
    for block in sorted(blocks, key=lambda block: block.first_seed_index):
        lesions.setdefault(block.arm, []).extend(block.lesion_counts())
    return lesions


def _writer(source: ViewSource, grid: ViewGrid) -> LayerWriter:
    """Return a writer that holds the layers of the patient, and the truth where it is known."""
    case, arms = source.case, source.job.request.arms
    writer = LayerWriter(grid, source.store.spec.visits)
    writer.add_case(case, source.store.read(case.index))
    if source.truth is not None and source.job.request.upload is None:
        masks = counterfactual_net2(source.truth, case.subject, case.grid, arms=arms)
        writer.add_truth(dict(zip(arms, masks, strict=True)))
    return writer


def _header(
    source: ViewSource,
    writer: LayerWriter,
    numbers: Sequence[ArmNumbers],
    summary: ForecastSummary | None,
) -> ViewHeader:
    job, grid = source.job, writer.grid
    return ViewHeader(
        version=VIEW_SCHEMA,
        forecast=job.id,
        subject=job.request.subject,
        state=job.state,
        shape=grid.shape,
        spacing_mm=grid.spacing,
        affine=grid.affine.tolist(),
        target=RunProvenance(source.bundle, job.request.seed, visits=source.visits).target,
        sessions=[source.store.spec.visits.label(session) for session in job.request.sessions],
        reference_arm=job.request.reference_arm,
        received_arm=source.case.arm,
        observed_lesions=None if summary is None else summary.observed_lesions,
        samples=job.request.samples,
        seed=job.request.seed,
        arms=list(numbers),
        disclaimers=[PREDICTED, RESEARCH_USE, POSITIVITY],
        warnings=list(source.warnings),
        notes=[] if summary is None else list(summary.notes),
        bundle=source.bundle,
        layers=writer.layers,
    )
