"""Build the view of a forecast: FLAIR, lesions, and the probability of each arm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lesioncast.forecasting.output.summary import ForecastSummary
from lesioncast.forecasting.output.typicality import typicality_line
from lesioncast.forecasting.view.encode import LayerWriter, encode_view
from lesioncast.forecasting.view.kept_samples import Masks
from lesioncast.forecasting.view.schemas import VIEW_SCHEMA, ArmNumbers, ViewFacts, ViewHeader
from lesioncast.forecasting.view.volumes import ViewGrid
from lesioncast.warning_list import severe, texts
from storage import Case, Store


@dataclass(frozen=True)
class ViewPatient:
    """The patient of a view."""

    case: Case
    store: Store
    #: Lesions that a simulated patient would have had, by arm, on the slab; empty if unknown.
    truth: Mapping[str, Masks]


def finished_view(
    patient: ViewPatient,
    summary: ForecastSummary,
    numbers: Sequence[ArmNumbers],
    maps: Mapping[str, nib.Nifti1Image],
    *,
    forecast: str = "",
) -> bytes:
    """Return the view of a finished forecast; `maps` are its probability maps by arm.

    A voxel of the view equals the voxel of the map. `forecast` is the forecast's id in the service.
    """
    grid = ViewGrid(patient.case.grid)
    volumes = {arm: grid.from_file(image) for arm, image in maps.items()}
    facts = ViewFacts(
        forecast=forecast,
        complete=True,
        subject=summary.subject,
        target=summary.target,
        sessions=[summary.visits.label(session) for session in summary.sessions],
        reference_arm=summary.reference_arm,
        received_arm=summary.received_arm,
        observed_lesions=summary.observed_lesions,
        samples=summary.samples,
        seed=summary.seed,
        map=summary.map,
        calibration=summary.calibration,
        disclaimers=list(summary.disclaimers),
        warnings=list(texts(summary.warnings)),
        severe=list(severe(summary.warnings)),
        typicality=typicality_line(summary.typicality),
        notes=list(summary.notes),
        bundle=summary.bundle,
    )
    return _build(patient, facts, numbers, volumes)


def partial_view(
    patient: ViewPatient,
    facts: ViewFacts,
    numbers: Sequence[ArmNumbers],
    masks: Mapping[str, Masks],
) -> bytes:
    """Return the view of an unfinished forecast from the samples drawn so far.

    `masks` [k, s, h, w] are the samples by arm, on the slab; `numbers` are those of all arms.
    """
    grid = ViewGrid(patient.case.grid)
    volumes = {
        arm: grid.from_slab(np.mean(samples, axis=0, dtype=np.float32), order=1)
        for arm, samples in masks.items()
    }
    return _build(patient, facts, numbers, volumes)


def parcellation_of(store: Store, case: Case) -> npt.NDArray[np.integer] | None:
    """Return the parcellation of a case on the slab, None if it has none."""
    return store.read(case.index).parcellation if case.parcellation else None


def _build(
    patient: ViewPatient,
    facts: ViewFacts,
    numbers: Sequence[ArmNumbers],
    probability: Mapping[str, npt.NDArray[np.generic]],
) -> bytes:
    grid = ViewGrid(patient.case.grid)
    writer = LayerWriter(grid, patient.store.spec.visits)
    writer.add_case(patient.case, patient.store.read(patient.case.index))
    writer.add_truth(patient.truth)
    writer.add_probabilities(probability)
    header = ViewHeader(
        **facts.model_dump(),
        version=VIEW_SCHEMA,
        shape=grid.shape,
        spacing_mm=grid.spacing,
        affine=grid.affine.tolist(),
        arms=list(numbers),
        layers=writer.layers,
    )
    return encode_view(header, bytes(writer.body))
