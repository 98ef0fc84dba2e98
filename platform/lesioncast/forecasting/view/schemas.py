"""Header of the binary view: geometry, numbers, warnings and the list of layers."""

from typing import Literal

from pydantic import BaseModel, Field

from lesioncast.forecasting.output.calibrated import CalibratedArm, CalibrationSummary
from lesioncast.forecasting.output.summary import MapKind

VIEW_SCHEMA = 1

LayerKind = Literal["flair", "t2", "gad", "net2", "probability", "truth"]


class Interval(BaseModel):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class Layer(BaseModel):
    """One array of the view, as it lies in the body after the header."""

    kind: LayerKind = Field(description="What the array shows.")
    session: str | None = Field(description="Session of an image or mask; null for a forecast.")
    arm: str | None = Field(description="Arm of a probability map or a true mask; else null.")
    dtype: Literal["uint8", "float16", "bits"] = Field(
        description="`bits` holds eight voxels a byte, the first in the highest bit; the last byte "
        "is padded with zeros. `float16` is little-endian."
    )
    offset: int = Field(description="First byte of the array, counted from the end of the header.")
    length: int = Field(description="Number of bytes.")


class ArmNumbers(BaseModel):
    """Numbers of a forecast under one arm; null where they are not known yet."""

    name: str
    received: bool = Field(description="Whether the patient received this arm.")
    samples: int = Field(description="Samples drawn so far.")
    kept_samples: int = Field(description="Samples whose masks can be requested one by one.")
    p_active: float | None = Field(
        description="P(active) in closed form; null while the forecast runs, and for models that "
        "only sample."
    )
    active_fraction: Interval | None = Field(
        description="Share of samples with a lesion, with its 95 % interval."
    )
    expected_lesions: float | None = Field(
        description="Expected number of lesions in closed form; null as for `p_active`."
    )
    lesions: Interval | None = Field(
        description="Mean number of lesions of the samples, with their 5 % and 95 % quantiles."
    )
    volume_mm3: float | None = Field(
        description="Expected lesion volume: that of the map in closed form, else the mean of the "
        "samples."
    )
    calibrated: CalibratedArm | None = Field(
        default=None,
        description="Conformal intervals of the number of lesions, and the recalibrated P(active); "
        "null while the forecast runs, and without a calibration.",
    )
    regions: dict[str, float] = Field(
        description="Probability of a lesion in each region, or the share of samples with one; "
        "empty without a parcellation."
    )
    regions_in_closed_form: bool = Field(
        default=False,
        description="Whether `regions` follow from the map and P(active) in closed form; else they "
        "are shares of samples.",
    )
    minus_reference: Interval | None = Field(
        description="P(active) minus that under the reference arm, with the 95 % interval of the "
        "Monte Carlo error."
    )
    difference_error: float | None = Field(
        description="By how much the evaluation of the bundle missed the mean of that difference; "
        "null if it is not known."
    )


class ViewFacts(BaseModel):
    """Facts about a forecast that a view states in words."""

    forecast: str = Field(description="Id of the forecast in the service; empty elsewhere.")
    complete: bool = Field(description="False while the forecast runs.")
    subject: str
    target: str = Field(description="What the probabilities are about.")
    sessions: list[str] = Field(description="Sessions whose images the model saw.")
    reference_arm: str
    received_arm: str | None
    observed_lesions: int | None
    samples: int = Field(description="Samples of each arm that were asked for.")
    seed: int
    map: MapKind = Field(
        default="share of samples",
        description="What the probabilities of voxels are; a share while the forecast runs.",
    )
    calibration: CalibrationSummary | None = Field(
        default=None,
        description="The cohort that the calibrated numbers were learned on; null without one.",
    )
    disclaimers: list[str]
    warnings: list[str] = Field(
        description="Warnings about this patient, then findings of the bundle's evaluation."
    )
    severe: list[str] = Field(default=[], description="Those of the warnings that are severe.")
    typicality: str = Field(
        default="", description="How typical the patient is; empty while the forecast runs."
    )
    notes: list[str]
    bundle: str = Field(description="Digest of the bundle.")


class ViewHeader(ViewFacts):
    """The header of a view.

    Arrays are [s, h, w] in RAS+ order: s runs from inferior to superior, h to anterior, w to the
    patient's right. `affine` takes indices (w, h, s) to millimetres.
    """

    version: int = Field(description="Version of the format of the view.")
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    affine: list[list[float]]
    arms: list[ArmNumbers] = Field(description="The arms, in the order of the request.")
    layers: list[Layer]
