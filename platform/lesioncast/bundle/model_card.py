"""The model card of a bundle, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lesioncast.imaging.channels import BASELINE_SESSION

if TYPE_CHECKING:
    from lesioncast.bundle.config import BundleConfig

CARD = """# Forecasts of new MS lesions

Given a patient's images ({condition}) and a treatment arm, the two networks of this bundle
draw masks of the new and enlarging T2 lesions (NET2) at week 96: the method of arXiv 2508.07006.

**For research only. Not a medical device, not for decisions about patients.**

- Data: {data}
- Arms: {arms}. In the paper the arms come from different trials, so that arm and scanner are
  confounded; a counterfactual answer holds only for patients who could have been given that arm.
{covariates}{start}{loads}- Slab: {slab} voxels (s, h, w) of {spacing} mm.
- Sampler: {solver}, {num_steps} steps, guidance {guidance}.
- Weights: moving averages of the parameters, float32.

| stage | steps | loss at the end |
|---|---|---|
{stages}

`config.json` shapes the networks, `metrics.json` holds how each stage went, `manifest.json` the
sha256 of every file. Load with `lesioncast.bundle.bundle.load_bundle`.
"""


def model_card(config: BundleConfig, metrics: Mapping[str, Any]) -> str:
    """What a reader must know before using the weights."""
    stages = [
        f"| {name} | {stage['step']} | {stage['loss']:.4g} |"
        for name, stage in metrics["stages"].items()
    ]
    return CARD.format(
        condition=", ".join(config.model.control.condition),
        data=metrics["data"],
        arms=", ".join(config.model.arms),
        covariates=_covariates(config),
        start=_start(config),
        loads=_loads(config),
        slab=" x ".join(map(str, config.slab)),
        spacing=" x ".join(f"{size:g}" for size in config.spacing),
        solver=config.sampler.solver,
        num_steps=config.sampler.num_steps,
        guidance=config.sampler.guidance,
        stages="\n".join(stages),
    )


def _start(config: BundleConfig) -> str:
    if not config.from_start:
        return ""
    return (
        f"- To compare arms for a patient, show the images of {BASELINE_SESSION} alone. Later\n"
        "  ones show what the received arm has done. With them, a forecast under another arm does\n"
        "  not say what that arm would have done from the start.\n"
    )


def _loads(config: BundleConfig) -> str:
    if not config.model.unet.lesion_load_thresholds:
        return ""
    least = ", ".join(map(str, config.model.unet.lesion_load_thresholds))
    return (
        f"- Lesion load: whether there are lesions, and from {least} voxels how many, is drawn\n"
        "  first, from arm, covariates and the images' lesion burden; the diffusion places them.\n"
        "  Guidance does not change the load.\n"
    )


def _covariates(config: BundleConfig) -> str:
    names = ", ".join(each.name for each in config.model.covariates)
    return f"- Covariates, each of which may be missing: {names}.\n" if names else ""
