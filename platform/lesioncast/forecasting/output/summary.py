"""What the ensembles of one subject say, arm by arm and against a reference arm, as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lesioncast.forecasting.disclaimers import POSITIVITY, PREDICTED, RESEARCH_USE
from lesioncast.forecasting.ensemble import (
    Ensemble,
    monte_carlo_error,
    paired_difference,
    wilson_interval,
)
from lesioncast.imaging.channels import SESSIONS
from lesioncast.imaging.lesions import opening_element

Record = dict[str, Any]

SCHEMA = 3
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Provenance:
    """What a forecast was made with: digests of bundle and case, the run's seed, remarks, the
    sessions whose images the model saw, and the warnings of the bundle's evaluation."""

    bundle: str
    case: str
    seed: int
    remarks: tuple[str, ...] = ()
    sessions: tuple[str, ...] = SESSIONS[:2]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SubjectInfo:
    """Whose forecast it is: `sub-...`, the arm received if known, true w096 lesions if observed,
    and which of the model's covariates are known."""

    name: str
    arm: str | None
    observed_lesions: int | None
    covariates: Mapping[str, bool] = field(default_factory=dict)


def summarise(
    subject: SubjectInfo,
    by_arm: Mapping[str, Ensemble],
    *,
    reference: str,
    opening: bool,
    spacing: Sequence[float],
    provenance: Provenance,
) -> Record:
    """One subject's forecast in numbers; `by_arm` holds ensembles on the same seeds."""
    seeds = by_arm[reference].seeds
    against = by_arm[reference]
    return {
        "schema": SCHEMA,
        "subject": subject.name,
        "target": "new and enlarging T2 lesions at w096 since w048",
        "notices": [PREDICTED, RESEARCH_USE, POSITIVITY, *provenance.remarks],
        "warnings": list(provenance.warnings),
        "bundle": provenance.bundle,
        "case": provenance.case,
        "sessions": list(provenance.sessions),
        "seed": provenance.seed,
        "samples": len(seeds),
        "seeds": list(seeds),
        "opening": {"element": list(opening_element(spacing)), "applied": opening},
        "received_arm": subject.arm,
        "observed_lesions": subject.observed_lesions,
        "covariates": {
            "used": [name for name, known in subject.covariates.items() if known],
            "missing": [name for name, known in subject.covariates.items() if not known],
        },
        "reference_arm": reference,
        "arms": {
            arm: {
                "received": arm == subject.arm,
                **arm_record(ensemble, opening=opening),
                "minus_reference": difference_record(ensemble, against, opening=opening),
            }
            for arm, ensemble in by_arm.items()
        },
    }


def arm_record(ensemble: Ensemble, *, opening: bool) -> Record:
    """P(active), and the spread of lesion count and volume.

    `low` and `high` are the Wilson interval of a share of samples; what the model states has none.
    A count's `stated` is its expectation as the model states it before it draws, None where not.
    """
    counts = ensemble.counts(opening=opening)
    stated = ensemble.stated_of(opening=opening)
    chance = ensemble.p_active(opening=opening)
    low, high = (chance, chance) if stated is not None else wilson_interval(chance, len(counts))
    quantiles = np.quantile(counts, QUANTILES, method="inverted_cdf")
    return {
        "p_active": {"value": chance, "low": low, "high": high, "stated": stated is not None},
        "count": {
            "mean": float(counts.mean()),
            "stated": None if stated is None else stated.lesions,
            "mc_error": monte_carlo_error(counts),
            "sd": float(counts.std(ddof=1)),
            "quantiles": {
                f"{level:.2f}": int(value)
                for level, value in zip(QUANTILES, quantiles, strict=True)
            },
        },
        "count_mean_unopened": float(ensemble.plain.mean()),
        "count_mean_opened": float(ensemble.opened.mean()),
        "volume_mm3": {
            "mean": float(ensemble.volume.mean()),
            "mc_error": monte_carlo_error(ensemble.volume),
        },
    }


def difference_record(ensemble: Ensemble, reference: Ensemble, *, opening: bool) -> Record:
    """Arm minus reference on the same seeds, each with its Monte Carlo standard error."""
    if ensemble.seeds != reference.seeds:
        raise ValueError(
            f"expected both arms on the same seeds, got {len(ensemble.seeds)} and "
            f"{len(reference.seeds)} that differ; draw them in one forecast"
        )
    counts, others = ensemble.counts(opening=opening), reference.counts(opening=opening)
    active, active_error = paired_difference(counts > 0, others > 0)
    count, count_error = paired_difference(counts, others)
    told, told_of_reference = (each.stated_of(opening=opening) for each in (ensemble, reference))
    stated = None
    if told is not None and told_of_reference is not None:
        active, active_error = told.p_active - told_of_reference.p_active, 0.0
        stated = told.lesions - told_of_reference.lesions
    return {
        "p_active": {"value": active, "mc_error": active_error},
        "count": {"value": count, "mc_error": count_error, "stated": stated},
    }
