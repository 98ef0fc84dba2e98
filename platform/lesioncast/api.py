"""The Python API: forecast one patient in this process, without a Ray cluster.

    import lesioncast

    model = lesioncast.load_bundle("out/demo/bundle")
    images = {"w000/flair": "week0.nii.gz", "w048/flair": nibabel.load("week48.nii.gz")}
    forecast = model.forecast(images, samples=16, seed=0)
    forecast.arms["placebo"].p_active
    forecast.arms["placebo"].probability            # a NIfTI image on the grid of w048/flair

A seed names the same samples here, in the forecast job and in the service. Research use only; not a
medical device.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lesioncast.bundle import bundle as bundles
from lesioncast.bundle.bundle import Bundle
from lesioncast.bundle.pretrained import PRETRAINED, pretrained_bundle
from lesioncast.errors import ForecastError
from lesioncast.forecasting.output.calibrated import CalibratedArm
from lesioncast.forecasting.output.members import MembersSummary
from lesioncast.forecasting.output.summary import ForecastSummary
from lesioncast.forecasting.pipeline import (
    assemble_forecast,
    check_reference_arm,
    plan_forecast,
    run_provenance,
)
from lesioncast.forecasting.runtime import forecast_sampler, one_thread
from lesioncast.forecasting.sampling import ensembles
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.imaging.intervals import INTERVALS, check_days
from storage import Location, Store, StoreSettings, open_store, to_source_grid
from storage.convert.patient import (
    PATIENT_IMAGES,
    convert_patient,
    patient_image_path,
    write_patient_table,
)
from storage.layout import CovariateValue

DEFAULT_SETTINGS = ForecastSettings()
# A NIfTI file, or an image in memory.
PatientImage: TypeAlias = str | Path | nib.Nifti1Image


@dataclass(frozen=True)
class Patient:
    """What is known of a patient beside the images."""

    #: Values that the model knows by these names, and the days between sessions (`INTERVALS`): a
    #: note says where they leave the range of training.
    covariates: Mapping[str, CovariateValue] = field(default_factory=dict)
    #: BIDS name, on which the seeds depend.
    subject: str = "sub-patient"
    #: Whether images of another voxel size are resampled; None does what was done in training.
    resample: bool | None = None


UNKNOWN_PATIENT = Patient()


@dataclass(frozen=True)
class ArmForecast:
    """Forecast of one patient under one arm."""

    #: Probability of at least one new or enlarging T2 lesion.
    p_active: float
    #: Expected number of lesions: exact if the networks compute it, else the mean of the samples.
    expected_count: float
    #: Number of lesions in each sample [k].
    lesion_counts: npt.NDArray[np.int64]
    #: Conformal intervals of the number of lesions and the recalibrated P(active), by the bundle's
    #: calibration; None without one.
    calibrated: CalibratedArm | None
    #: What each member of the bundle states, and the spread between them; None for one member.
    members: MembersSummary | None
    #: Probability of a lesion in each voxel of the patient's own current FLAIR: in closed form if
    #: the networks refine a base map, else the share of samples.
    probability: nib.Nifti1Image
    #: Share of samples with a lesion, in the same voxels.
    sample_share: nib.Nifti1Image


@dataclass(frozen=True)
class Forecast:
    """Forecast of one patient under every arm, on the same seeds."""

    #: Forecast under each arm, by its name.
    arms: Mapping[str, ArmForecast]
    #: All numbers with their intervals, disclaimers and warnings, as the job writes them.
    summary: ForecastSummary


class ForecastModel:
    """A bundle whose networks are loaded; see `load_bundle`."""

    def __init__(self, bundle: Bundle, *, device: str) -> None:
        self.bundle = bundle
        self.device = device

    @property
    def arms(self) -> tuple[str, ...]:
        """Return the treatment arms that the model knows."""
        return self.bundle.config.model.arms

    def forecast(
        self,
        images: Mapping[str, PatientImage],
        *,
        patient: Patient = UNKNOWN_PATIENT,
        arms: Sequence[str] = (),
        samples: int | None = None,
        seed: int = 0,
        settings: ForecastSettings = DEFAULT_SETTINGS,
    ) -> Forecast:
        """Forecast a patient from NIfTI files or images in memory.

        `images` has session and channel as keys: w000/flair and w048/flair are required, the others
        in `PATIENT_IMAGES` are optional. The images are prepared as the training images of the
        bundle were. `arms` names the arms to forecast, by default all. `samples` is the number of
        samples an arm, by default that of `settings`.

        Raise ForecastError for an unknown image, covariate, arm or session, and CaseError, which
        names the file, for an image that cannot be used.
        """
        store_settings = self._store_settings(resample=patient.resample)
        layout = store_settings.layout
        self._check_patient(images, patient.covariates)
        settings = settings if samples is None else replace(settings, samples=samples)
        with TemporaryDirectory(prefix="lesioncast-") as folder:
            bids = Path(folder) / "bids"
            write_patient_table(bids, patient.subject, patient.covariates, layout=layout)
            for name, source in images.items():
                target = bids / patient_image_path(name, patient.subject, layout)
                target.parent.mkdir(parents=True, exist_ok=True)
                _write_image(name, source, target)
            store = convert_patient(
                bids, Path(folder) / "store.zarr", settings=store_settings, arms=self.arms
            )
            return self.forecast_case(
                store, patient.subject, arms=arms, settings=settings, seed=seed
            )

    def forecast_case(
        self,
        store: Store | Location,
        subject: str,
        *,
        arms: Sequence[str] = (),
        settings: ForecastSettings = DEFAULT_SETTINGS,
        seed: int = 0,
    ) -> Forecast:
        """Forecast a subject of a store, given open or by its path or URL, under `arms` or all.

        The numbers are those of the forecast job with the same settings and seed.

        Raise ForecastError if the store does not fit the bundle, or for an arm that the bundle does
        not know, and StoreError if the store does not hold the subject.
        """
        store = store if isinstance(store, Store) else open_store(store)
        arms = tuple(arms) or self.arms
        if unknown := [arm for arm in arms if arm not in self.arms]:
            raise ForecastError(f"arms: expected some of {', '.join(self.arms)}, got {unknown[0]}")
        check_reference_arm(settings.reference_arm, arms)
        case = store.case(subject)
        provenance = run_provenance(self.bundle, store, seed=seed, sessions=settings.sessions)
        plan = plan_forecast(store, [case], settings=settings, seed=seed, arms=arms)
        sampler = forecast_sampler(self.bundle, store, device=self.device)
        with one_thread(self.device):
            drawn = map(sampler, plan.batches(settings.batch_size))
            by_arm = dict(zip(arms, ensembles(plan.requests, plan.seeds, drawn), strict=True))
        assembled = assemble_forecast(store, case, by_arm, settings=settings, provenance=provenance)
        by_name = {}
        for arm, ensemble in by_arm.items():
            summary = assembled.summary.arms[arm]
            expected = summary.count.expected
            by_name[arm] = ArmForecast(
                p_active=summary.p_active.value,
                expected_count=summary.count.mean if expected is None else expected,
                lesion_counts=ensemble.counts(opening=settings.apply_opening),
                calibrated=summary.calibrated,
                members=summary.members,
                probability=assembled.probability[arm],
                sample_share=to_source_grid(ensemble.sample_share, case.grid, order=1),
            )
        return Forecast(by_name, assembled.summary)

    def _store_settings(self, *, resample: bool | None) -> StoreSettings:
        recorded = self.bundle.config.store
        return recorded if resample is None else replace(recorded, resample=resample)

    def _check_patient(
        self, images: Mapping[str, PatientImage], covariates: Mapping[str, CovariateValue]
    ) -> None:
        """Raise ForecastError for names of images or covariates that would be ignored."""
        if unknown := sorted(set(images) - set(PATIENT_IMAGES)):
            raise ForecastError(
                f"images: expected names among {', '.join(PATIENT_IMAGES)}, got {unknown[0]}"
            )
        known = {covariate.name: covariate for covariate in self.bundle.config.model.covariates}
        for name, value in covariates.items():
            if name in INTERVALS:
                try:
                    check_days(name, value)
                except ValueError as error:
                    raise ForecastError(str(error)) from error
            if name not in (*known, *INTERVALS):
                raise ForecastError(
                    f"covariates: expected some of {', '.join(known) or 'none'}, got {name}"
                )
            if value is not None and name in known and not np.isfinite(known[name].encode(value)):
                kind = " or ".join(known[name].levels) or "a finite number"
                raise ForecastError(f"covariates.{name}: expected {kind}, got {value}")


def load_bundle(bundle: str | Path, *, device: str = "cpu") -> ForecastModel:
    """Load a bundle's networks onto a device, such as cuda.

    `bundle` is a folder, or the string `pretrained` for the bundle that comes with lesioncast.
    Raise BundleError, naming the file, if one is missing, altered or not of a bundle.
    """
    path = pretrained_bundle() if bundle == PRETRAINED else Path(bundle)
    return ForecastModel(bundles.load_bundle(path, device=device), device=device)


def _write_image(name: str, source: PatientImage, target: Path) -> None:
    """Write an image to the file `target` with the values, types and header that it has.

    A file that was loaded and its path give the same forecast to the last bit: nibabel would scale
    values anew if the header did not say how they are scaled.
    """
    if isinstance(source, str | Path):
        shutil.copyfile(source, target)
        return
    if not isinstance(source, nib.Nifti1Image):
        raise ForecastError(
            f"images.{name}: expected a path or a NIfTI image, got {type(source).__name__}; "
            "convert it with nibabel.Nifti1Image.from_image"
        )
    values, slope, inter = source.dataobj, 1.0, 0.0
    if nib.is_proxy(values):
        slope, inter = values.slope, values.inter
        values = values.get_unscaled()
    values = np.asarray(values)
    values = values.astype(np.uint8) if values.dtype == bool else values
    header = source.header.copy()
    header.set_data_dtype(values.dtype)
    image = type(source)(values, source.affine, header)
    image.header.set_slope_inter(slope, inter)
    nib.save(image, target)
