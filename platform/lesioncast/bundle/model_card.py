"""Write the model card of a bundle, as Markdown."""

import math
from collections.abc import Mapping
from typing import Any

from lesioncast.bundle.calibration import BundleCalibration
from lesioncast.bundle.config import BundleConfig
from lesioncast.imaging.channels import BASELINE, CURRENT, OUTCOME

CARD = """# Forecasts of new MS lesions

Given a patient's images ({condition}) and a treatment arm, the two networks of this bundle
sample masks of the new and enlarging T2 lesions (NET2) at {outcome} since {current}: the
method of arXiv 2508.07006.

**For research only. Not a medical device, not for decisions about patients.**

- Data: {data}
- Arms: {arms}. In the paper the arms come from different trials, so that arm and scanner are
  confounded; a counterfactual answer holds only for patients who could have been given that arm.
{covariates}{baseline}{lesion_load}{calibration}- Slab: {slab} voxels (s, h, w) of {spacing} mm.
- Sampler: {solver}, {num_steps} steps, guidance {guidance}.
- Weights: moving averages of the parameters, float32.

| stage | steps | loss at the end |
|---|---|---|
{stages}

`config.json` configures the networks, `metrics.json` holds the training metrics of each stage,
and `manifest.json` the SHA-256 of every file. Load with `lesioncast.bundle.bundle.load_bundle`.
"""


def model_card(
    config: BundleConfig,
    metrics: Mapping[str, Any],
    calibration: BundleCalibration | None = None,
) -> str:
    """Return the model card: use, training data, arms, inputs, calibration, sampler and losses."""
    stages = [
        f"| {name}{of_member} | {stage['step']} | {stage['loss']:.4g} |"
        for of_member, record in _by_member(metrics)
        for name, stage in record["stages"].items()
    ]
    return CARD.format(
        outcome=config.visits.describe(OUTCOME),
        current=config.visits.describe(CURRENT),
        condition=", ".join(config.model.control.condition),
        data=metrics["data"],
        arms=", ".join(config.model.arms),
        covariates=_covariates(config),
        baseline=_baseline(config),
        lesion_load=_lesion_load(config) + _base_map(config) + _balance(config),
        calibration=_members(len(metrics.get("members", ()))) + _calibration(calibration),
        slab=" x ".join(map(str, config.slab)),
        spacing=" x ".join(f"{size:g}" for size in config.spacing),
        solver=config.sampler.solver,
        num_steps=config.sampler.num_steps,
        guidance=config.sampler.guidance,
        stages="\n".join(stages),
    )


def _by_member(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what follows the name of a stage, and the metrics, of each member."""
    members = metrics.get("members")
    if not members:
        return [("", metrics)]
    return [(f", member {number}", record) for number, record in enumerate(members, 1)]


def _members(number: int) -> str:
    if not number:
        return ""
    return (
        f"- Members: {number}, trained with different seeds. Forecasts are those of their\n"
        "  mixture, and tell how far the members differ.\n"
    )


def _baseline(config: BundleConfig) -> str:
    if not config.baseline_only:
        return ""
    baseline = config.visits.label(BASELINE)
    return (
        f"- To compare arms for a patient, use the images of {baseline} only. Later images\n"
        "  already show the effect of the arm that was received. With later images, a\n"
        "  forecast under another arm does not tell what that arm would have done since baseline.\n"
    )


def _lesion_load(config: BundleConfig) -> str:
    if not config.model.unet.lesion_load_thresholds:
        return ""
    voxel = math.prod(config.spacing)
    volumes = ", ".join(f"{voxel * n:g}" for n in config.model.unet.lesion_load_thresholds)
    return (
        f"- Lesion load: a class of lesion volume (none, or from {volumes} mm3) is sampled\n"
        "  first, given the arm, the covariates and the lesion burden of the images. The\n"
        "  diffusion model then places the lesions. Guidance does not change the lesion load.\n"
    ) + _flair_reader(config)


def _flair_reader(config: BundleConfig) -> str:
    if config.model.control.flair_reader_spacing is None:
        return ""
    return (
        "- Lesions in FLAIR: the lesion load also follows from lesions that two small networks\n"
        "  recognise in FLAIR. They learned it from the masks of the training cases.\n"
    )


def _base_map(config: BundleConfig) -> str:
    if not config.model.unet.base_map:
        return ""
    return (
        "- Base map: a spatial prior, fitted to the new lesions of the training cases, gives each\n"
        "  patient a map of where lesions are likely. The networks start from it.\n"
    )


def _calibration(calibration: BundleCalibration | None) -> str:
    if calibration is None:
        return "- Calibration: none. The ranges of forecasts are quantiles of samples.\n"
    simulated = ", all simulated" if calibration.cohort.simulated else ""
    parent = (
        ""
        if calibration.parent is None
        else f"  It replaced the calibration of bundle {calibration.parent[:12]}, whose weights\n"
        "  these are.\n"
    )
    return (
        "- Calibration: intervals of the number of lesions, and a second P(active), hold on\n"
        f"  average for patients like those that they were learned on: {calibration.description}"
        f"{simulated}.\n{parent}"
    )


def _balance(config: BundleConfig) -> str:
    ratio = config.balanced_odds_ratio
    if ratio == 1:
        return ""
    return (
        "- Stage 2 saw as many cases without as with new lesions, which multiplies the odds of\n"
        f"  new lesions by {ratio:.2f}. Samples are drawn without that bias, by rejection.\n"
    )


def _covariates(config: BundleConfig) -> str:
    names = ", ".join(covariate.name for covariate in config.model.covariates)
    return f"- Covariates, each of which may be missing: {names}.\n" if names else ""
