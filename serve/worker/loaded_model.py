"""The mounted bundle and store, and the result of a job that they give."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lesioncast.arrays import Float32s
from lesioncast.bundle.bundle import BundlePrior, load_bundle, load_bundle_prior
from lesioncast.bundle.description import bundle_digest
from lesioncast.forecasting.adaptive import sampling_notes
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.output.bids import write_forecast_root
from lesioncast.forecasting.output.summary import ForecastSummary
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    run_provenance,
    stored_flair,
    write_forecasts,
)
from lesioncast.forecasting.runtime import expected_outcomes_of, maps_of_requests, one_thread
from lesioncast.forecasting.sampling import EnsembleRequest, ModelInput
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.forecasting.view.build import parcellation_of
from lesioncast.forecasting.view.kept_samples import keep_samples, write_kept_samples
from lesioncast.imaging.channels import Sessions
from serve.api.schemas import ResolvedRequest
from serve.artifacts import kept_samples_path, result_dir, upload_dir
from serve.db.models import DrawnBlock, ForecastJob, masks_by_arm
from serve.model_info import MountedModel, open_store_for
from serve.patients import PatientRef, patient_for_job, store_for_patient
from serve.settings import ServiceSettings
from serve.worker.retry import OtherBundleError
from storage import Case, Store


@dataclass(frozen=True)
class LoadedModel(MountedModel):
    """A mounted model whose results can be written. The networks stay with the samplers."""

    bundle: BundlePrior

    def expected_by_arm(self, job: ForecastJob) -> dict[str, ExpectedOutcomes]:
        """Return the exact expectations under each arm of the job; empty where there are none."""
        patient = patient_for_job(job)
        store = store_for_patient(patient, self.store, self.settings.artifacts)
        inputs = ModelInput(store.case(patient.subject).index, patient.sessions)
        expected = expected_outcomes_of(self.bundle, store, inputs).get(inputs)
        if expected is None:
            return {}
        return {arm: expected[store.spec.arms.index(arm)] for arm in job.request.arms}

    def write_result(self, job: ForecastJob, blocks: Sequence[DrawnBlock]) -> ForecastSummary:
        """Write the result of a job as jobs/forecast.py does, and return its summary.

        `blocks` holds equally many blocks of every arm, in the order of `split_into_blocks`. Raises
        OtherBundleError if the bundle was replaced: its notes are not about these samples.
        """
        on_disk = bundle_digest(self.bundle.path)
        if on_disk != self.bundle.digest:
            raise OtherBundleError(
                f"{self.bundle.path}: expected bundle {self.bundle.digest[:12]}, got "
                f"{on_disk[:12]}; restart the service, so that all replicas load it"
            )
        request, patient = job.request, patient_for_job(job)
        store = store_for_patient(patient, self.store, self.settings.artifacts)
        case = store.case(patient.subject)
        sessions = patient.sessions or ()
        expected = expected_outcomes_of(
            self.bundle, store, ModelInput(case.index, patient.sessions)
        )
        maps = self._maps(store, case, request.arms, patient.sessions)
        # The database returns blocks in the order of seeds; a forecast reads them arm by arm.
        drawn = [
            replace(block.to_batch(), expected=expected, maps=maps)
            for arm in request.arms
            for block in blocks
            if block.arm == arm
        ]
        run = ForecastRun(
            settings=ForecastSettings(
                samples=samples_per_arm(blocks, request),
                reference_arm=request.reference_arm,
                apply_opening=self.settings.apply_opening,
                sessions=sessions,
            ),
            provenance=run_provenance(
                self.bundle,
                store,
                seed=request.seed,
                sessions=sessions,
                notes=sampling_notes(request.sampling_request),
            ),
            out=result_dir(self.settings.artifacts, job.id),
            background=stored_flair(store),
        )
        write_forecast_root(run.out, source=self._source(patient, run.out))
        kept = keep_samples(masks_by_arm(blocks), parcellation_of(store, case))
        write_kept_samples(kept_samples_path(self.settings.artifacts, job.id), kept)
        (summary,) = write_forecasts(store, [case], drawn, run, arms=request.arms)
        return summary

    def _maps(
        self, store: Store, case: Case, arms: Sequence[str], sessions: Sessions | None
    ) -> Mapping[EnsembleRequest, Float32s]:
        """Return the map of each arm in closed form, as the forecast job computes it.

        The networks are loaded for it and let go again: they are small where there is a base map,
        and no sampler has to wait.
        """
        if not self.bundle.config.model.unet.base_map:
            return {}
        requests = [
            EnsembleRequest(case.index, store.spec.arms.index(arm), sessions or None)
            for arm in arms
        ]
        with one_thread():
            return maps_of_requests(load_bundle(self.bundle.path), store, requests)

    def _source(self, patient: PatientRef, result: Path) -> Path | str:
        """Return the data set with the patient's images, as the result names it to the client.

        Uploads are named relative to the result: a client is not told where the service keeps them.
        """
        if patient.upload is None:
            return Path(self.store.table.bids)
        uploaded = upload_dir(self.settings.artifacts, patient.upload) / "bids"
        return os.path.relpath(uploaded, result)


def load_model(settings: ServiceSettings) -> LoadedModel:
    """Open bundle and store, and load the prior. Raises ForecastError if they do not fit."""
    bundle = load_bundle_prior(settings.bundle)
    return LoadedModel(bundle, open_store_for(bundle, settings), settings)


def samples_per_arm(blocks: Sequence[DrawnBlock], request: ResolvedRequest) -> int:
    """Return the number of samples of each arm, which is the same for all arms."""
    return sum(len(block.lesions) for block in blocks if block.arm == request.arms[0])
