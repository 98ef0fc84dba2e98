"""Choose a bundle's guidance on validation cases by a proper score, and record the choice in it.

The paper samples with classifier-free guidance (Ho and Salimans 2022) and gives no scale. Each
scale samples the same cases on the same seeds, under the arm received. The scale with the least
mean CRPS of the count is chosen (Gneiting and Raftery 2007); on a tie the smallest one. Test cases
are not read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.bundle.bundle import Bundle, save_same_weights
from lesioncast.bundle.description import METRICS_FILE
from lesioncast.bundle.json_files import read_json
from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.errors import ForecastError
from lesioncast.evaluation.features.image_features import observed_outcome
from lesioncast.evaluation.metrics.scores import crps, log_count_errors
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.runtime import build_sampler, device_of
from lesioncast.forecasting.sampling import (
    EnsembleRequest,
    ensembles,
    independent_seeds,
    plan_batches,
    seeds_of,
)
from lesioncast.imaging.lesions import lesion_count
from storage import Case, Store

SCALES = (1.0, 1.5, 2.0, 3.0, 4.5)


@dataclass(frozen=True)
class GuidanceScore:
    """Scores of one scale on the validation cases; the share of active samples is P(active)."""

    guidance: float
    crps: float
    crps_error: float
    """Standard error over cases of the CRPS minus that of the chosen scale."""
    brier: float
    log_count_mse: float
    mean_probability: float
    mean_count: float


@dataclass(frozen=True)
class GuidanceChoice:
    """The chosen scale, and the table by which it was chosen."""

    chosen: float
    cases: int
    samples: int
    seed: int
    opening: bool
    observed_share: float
    observed_count: float
    scores: tuple[GuidanceScore, ...]


@dataclass(frozen=True)
class GuidanceTrial:
    """What every scale is tried on: validation cases, samples a case, seed and opening."""

    cases: tuple[Case, ...]
    settings: EvaluationSettings
    seed: int
    opening: bool


def choose_guidance(
    store: Store, bundle: Bundle, trial: GuidanceTrial, scales: Sequence[float] = SCALES
) -> GuidanceChoice:
    """Sample the validation cases with every scale on Ray actors, and choose among the scales.

    Raise ForecastError without validation cases, by which alone a scale may be chosen.
    """
    if not trial.cases:
        raise ForecastError(
            f"{store.path}: expected validation cases to choose the guidance by, got none; give "
            "store.split_fractions a share for them"
        )
    true = np.array([_observed_count(store, case, trial) for case in trial.cases], np.float64)
    sampled = {
        scale: np.array(
            list(_sample(store, bundle, trial, replace(bundle.config.sampler, guidance=scale)))
        )
        for scale in sorted(scales)
    }
    return choice_of(true, sampled, seed=trial.seed, opening=trial.opening)


def _observed_count(store: Store, case: Case, trial: GuidanceTrial) -> int:
    """Return the observed lesions of a case, which has an outcome."""
    observed = observed_outcome(store.read(case.index))
    assert observed is not None
    return lesion_count(observed.net2, store.spec.spacing, opening=trial.opening)


def _sample(
    store: Store, bundle: Bundle, trial: GuidanceTrial, sampler: SamplerConfig
) -> Iterator[Floats]:
    """Yield the lesion counts of each case's samples, [k]."""
    settings = trial.settings
    requests = [EnsembleRequest(case.index, case.arm_index) for case in trial.cases]
    seeds = seeds_of(
        trial.cases, seed=trial.seed, samples=settings.samples, scheme=independent_seeds
    )
    batches = plan_batches(requests, seeds, batch_size=settings.batch_size)
    build = partial(
        build_sampler,
        bundle.path,
        store.path,
        device=device_of(settings.gpus_per_worker),
        inputs=store.table.inputs,
        sampler=sampler,
    )
    drawn = with_progress(
        ordered_actor_map(
            build, batches, workers=settings.workers, gpus_per_worker=settings.gpus_per_worker
        ),
        total=len(batches),
        label=f"batches sampled with guidance {sampler.guidance:g}",
    )
    for ensemble in ensembles(requests, seeds, drawn):
        yield ensemble.counts(opening=trial.opening).astype(np.float64)


def choice_of(
    true: Floats, sampled: Mapping[float, Floats], *, seed: int, opening: bool
) -> GuidanceChoice:
    """Return the scale with the least mean CRPS, and all scores.

    `true` [n] are the observed counts, `sampled` the counts of the samples [n, k] by scale.
    """
    by_scale = {scale: crps(true, counts) for scale, counts in sorted(sampled.items())}
    chosen = min(by_scale, key=lambda scale: float(by_scale[scale].mean()))
    active = true > 0
    cases, samples = sampled[chosen].shape

    def score(scale: float, counts: Floats) -> GuidanceScore:
        difference = by_scale[scale] - by_scale[chosen]
        probability = (counts > 0).mean(axis=1)
        return GuidanceScore(
            guidance=scale,
            crps=float(by_scale[scale].mean()),
            crps_error=float(difference.std(ddof=1) / np.sqrt(cases)),
            brier=float(((probability - active) ** 2).mean()),
            log_count_mse=float(log_count_errors(true, counts.mean(axis=1)).mean()),
            mean_probability=float(probability.mean()),
            mean_count=float(counts.mean()),
        )

    return GuidanceChoice(
        chosen=chosen,
        cases=cases,
        samples=samples,
        seed=seed,
        opening=opening,
        observed_share=float(active.mean()),
        observed_count=float(true.mean()),
        scores=tuple(score(scale, counts) for scale, counts in sorted(sampled.items())),
    )


def record_guidance(bundle: Bundle, choice: GuidanceChoice) -> str:
    """Write the chosen scale into the bundle's sampler, and the table into its metrics.json.

    Return the new digest: the bundle's forecasts change, and so does its name. An evaluation card
    of the old bundle no longer counts.
    """
    sampler = replace(bundle.config.sampler, guidance=choice.chosen)
    return save_same_weights(
        bundle.path,
        bundle,
        config=replace(bundle.config, sampler=sampler),
        metrics=read_json(bundle.path / METRICS_FILE) | {"guidance": asdict(choice)},
        calibration=bundle.calibration,
    )


def guidance_lines(choice: GuidanceChoice) -> list[str]:
    """Return the table in words, one line for each scale."""
    return [
        f"guidance {one.guidance:g}: CRPS {one.crps:.4f} ± {one.crps_error:.4f}, Brier score "
        f"{one.brier:.4f}, log-count MSE {one.log_count_mse:.4f}, {one.mean_count:.2f} lesions "
        f"({choice.observed_count:.2f} observed)"
        + (", chosen" if one.guidance == choice.chosen else "")
        for one in choice.scores
    ]
