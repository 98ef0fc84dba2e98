"""Numbers of each arm in a view, from a finished forecast or from the samples drawn so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.forecasting.ensemble import (
    Counts,
    active_fraction,
    paired_difference,
    wilson_interval,
)
from lesioncast.forecasting.output.summary import ArmSummary, ForecastSummary
from lesioncast.forecasting.view.kept_samples import KeptSamples
from lesioncast.forecasting.view.schemas import ArmNumbers, Interval
from lesioncast.imaging.lesions import LesionCounts

_Z95 = 1.959964


def finished_numbers(
    summary: ForecastSummary, kept: KeptSamples, *, errors: Mapping[str, float]
) -> list[ArmNumbers]:
    """Return the numbers of a finished forecast, in the order of its arms.

    `errors` are those of mean P(active) in the bundle's evaluation, by arm, where they are known.
    """
    numbers = [
        _finished(name, arm, samples=summary.samples, kept=kept)
        for name, arm in summary.arms.items()
    ]
    for arm in numbers:
        if {arm.name, summary.reference_arm} <= errors.keys():
            arm.difference_error = abs(errors[arm.name] - errors[summary.reference_arm])
    return numbers


def _finished(name: str, arm: ArmSummary, *, samples: int, kept: KeptSamples) -> ArmNumbers:
    p_active, counts, difference = arm.p_active, arm.count, arm.minus_reference.p_active
    share = arm.active_fraction
    return ArmNumbers(
        name=name,
        received=arm.received,
        samples=samples,
        kept_samples=len(kept.masks.get(name, ())),
        p_active=p_active.value if p_active.exact else None,
        active_fraction=Interval(value=share.value, low=share.low, high=share.high),
        expected_lesions=counts.expected,
        lesions=Interval(
            value=counts.mean,
            low=counts.sample_quantiles["0.05"],
            high=counts.sample_quantiles["0.95"],
        ),
        volume_mm3=arm.volume_mm3.mean
        if arm.volume_mm3.expected is None
        else arm.volume_mm3.expected,
        calibrated=arm.calibrated,
        regions=dict(arm.regions or kept.regions.get(name, {})),
        regions_in_closed_form=bool(arm.regions),
        minus_reference=_interval(difference.value, difference.mc_error),
        difference_error=None,
    )


@dataclass(frozen=True)
class PartialForecast:
    """The samples of an unfinished forecast drawn so far."""

    #: Lesions of each sample, by arm.
    lesions: Mapping[str, Sequence[LesionCounts]]
    #: Samples that can be shown, and regional risks.
    kept: KeptSamples
    #: The arms of the request.
    arms: Sequence[str]
    #: The arm that the others are compared with.
    reference: str
    #: The arm that the patient received, if it is known.
    received: str | None
    #: Whether lesions are counted after the opening.
    opening: bool


def partial_numbers(forecast: PartialForecast) -> list[ArmNumbers]:
    """Return the numbers that the samples drawn so far give, in the order of the request.

    An arm is compared with the reference on the seeds that both have. Blocks of seeds arrive in any
    order, so arms are compared only while they have equally many samples. Errors are those of
    independent samples, hence rather too large (see `forecasting.monte_carlo`).
    """
    counts = {
        arm: np.array(
            [
                each.opened if forecast.opening else each.plain
                for each in forecast.lesions.get(arm, ())
            ],
            np.int64,
        )
        for arm in forecast.arms
    }
    return [
        ArmNumbers(
            name=arm,
            received=arm == forecast.received,
            samples=len(counts[arm]),
            kept_samples=len(forecast.kept.masks.get(arm, ())),
            p_active=None,
            active_fraction=_fraction(counts[arm]),
            expected_lesions=None,
            lesions=_lesions(counts[arm]),
            volume_mm3=_volume(forecast.lesions.get(arm, ())),
            regions=dict(forecast.kept.regions.get(arm, {})),
            minus_reference=_difference(counts[arm], counts[forecast.reference]),
            difference_error=None,
        )
        for arm in forecast.arms
    ]


def _volume(lesions: Sequence[LesionCounts]) -> float | None:
    return float(np.mean([each.volume for each in lesions])) if lesions else None


def _fraction(counts: Counts) -> Interval | None:
    if not len(counts):
        return None
    share = active_fraction(counts)
    low, high = wilson_interval(share, len(counts))
    return Interval(value=share, low=low, high=high)


def _lesions(counts: Counts) -> Interval | None:
    if not len(counts):
        return None
    low, high = np.quantile(counts, (0.05, 0.95), method="inverted_cdf")
    return Interval(value=float(counts.mean()), low=float(low), high=float(high))


def _difference(
    counts: Counts,
    reference: Counts,
) -> Interval | None:
    if len(counts) != len(reference) or len(counts) < 2:
        return None
    return _interval(*paired_difference(counts > 0, reference > 0))


def _interval(value: float, error: float) -> Interval:
    return Interval(value=value, low=value - _Z95 * error, high=value + _Z95 * error)
