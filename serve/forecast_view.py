"""Views of the service's forecasts, from their results or from the samples drawn so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib

from lesioncast.forecasting.disclaimers import (
    POSITIVITY,
    PREDICTED,
    RESEARCH_USE,
    bundle_p_active_errors,
    bundle_warnings,
)
from lesioncast.forecasting.output.bids import forecast_path, summary_path
from lesioncast.forecasting.output.summary import RunProvenance, read_summary
from lesioncast.forecasting.view.build import (
    ViewPatient,
    finished_view,
    parcellation_of,
    partial_view,
)
from lesioncast.forecasting.view.kept_samples import (
    KeptSamples,
    Masks,
    keep_samples,
    read_kept_samples,
)
from lesioncast.forecasting.view.numbers import PartialForecast, finished_numbers, partial_numbers
from lesioncast.forecasting.view.schemas import ViewFacts
from lesioncast.imaging.lesions import LesionCounts
from lesioncast.simulation.ground_truth import counterfactual_net2
from lesioncast.warning_list import texts
from serve.api.dependencies import ServiceContext
from serve.artifacts import kept_samples_path, result_dir
from serve.db.models import UNFINISHED, DrawnBlock, ForecastJob, masks_by_arm
from serve.patients import patient_for_job, store_for_patient


@dataclass(frozen=True)
class JobView:
    """A job, and the service that runs it.

    Reading its patient raises FileNotFoundError or StorageError if the client deleted it.
    """

    context: ServiceContext
    job: ForecastJob

    def build(self) -> bytes:
        """Return the view. Raises FileNotFoundError if the files of the result are gone."""
        return self._partial() if self.job.state in UNFINISHED else self._finished()

    def patient(self) -> ViewPatient:
        """Return the patient, with the truth if the subject is simulated and may be shown."""
        settings, job = self.context.settings, self.job
        reference = patient_for_job(job)
        store = store_for_patient(reference, self.context.store, settings.artifacts)
        case = store.case(reference.subject)
        truth: Mapping[str, Masks] = {}
        if settings.demo and settings.truth is not None and reference.upload is None:
            arms = job.request.arms
            masks = counterfactual_net2(settings.truth, case.subject, case.grid, arms=arms)
            truth = dict(zip(arms, masks, strict=True))
        return ViewPatient(case, store, truth)

    def samples(self) -> Mapping[str, Masks]:
        """Return the masks of samples that can be shown, by arm, on the slab [k, s, h, w]."""
        return masks_by_arm(self._blocks()) if self.job.state in UNFINISHED else self._kept().masks

    def _blocks(self) -> Sequence[DrawnBlock]:
        return self.context.jobs.load_blocks(self.job.id, self.context.model.digest)

    def _kept(self) -> KeptSamples:
        path = kept_samples_path(self.context.settings.artifacts, self.job.id)
        try:
            return read_kept_samples(path, self.job.request.arms)
        except FileNotFoundError:  # a forecast of an earlier version of the service
            return KeptSamples({}, {})

    def _finished(self) -> bytes:
        subject = self.job.request.subject
        folder = result_dir(self.context.settings.artifacts, self.job.id)
        summary = read_summary(summary_path(folder, subject))
        maps = {arm: nib.load(forecast_path(folder, subject, arm)) for arm in summary.arms}
        errors: Mapping[str, float] = {}
        if summary.bundle == self.context.model.digest:  # else the bundle was replaced since
            errors = bundle_p_active_errors(self.context.settings.bundle, summary.bundle)
        numbers = finished_numbers(summary, self._kept(), errors=errors)
        return finished_view(self.patient(), summary, numbers, maps, forecast=self.job.id)

    def _partial(self) -> bytes:
        patient, blocks, request = self.patient(), self._blocks(), self.job.request
        masks = masks_by_arm(blocks)
        drawn = PartialForecast(
            lesions=_lesions_by_arm(blocks),
            kept=keep_samples(masks, parcellation_of(patient.store, patient.case)),
            arms=request.arms,
            reference=request.reference_arm,
            received=patient.case.arm,
            opening=self.context.settings.apply_opening,
        )
        return partial_view(patient, self._facts(patient), partial_numbers(drawn), masks)

    def _facts(self, patient: ViewPatient) -> ViewFacts:
        model, request = self.context.model, self.job.request
        provenance = RunProvenance(model.digest, request.seed, visits=model.visits)
        warnings = bundle_warnings(self.context.settings.bundle, model.digest)
        return ViewFacts(
            forecast=self.job.id,
            complete=False,
            subject=request.subject,
            target=provenance.target,
            sessions=[model.visits.label(session) for session in request.sessions],
            reference_arm=request.reference_arm,
            received_arm=patient.case.arm,
            observed_lesions=None,
            samples=request.samples,
            seed=request.seed,
            disclaimers=[PREDICTED, RESEARCH_USE, POSITIVITY],
            warnings=list(texts(warnings)),
            notes=[],
            bundle=model.digest,
        )


def _lesions_by_arm(blocks: Sequence[DrawnBlock]) -> dict[str, list[LesionCounts]]:
    lesions: dict[str, list[LesionCounts]] = {}
    for block in sorted(blocks, key=lambda block: block.first_seed_index):
        lesions.setdefault(block.arm, []).extend(block.lesion_counts())
    return lesions
