"""Export a bundle from the last checkpoint of stage 2."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesioncast.bundle.bundle import CASE_DIGITS, save_bundle
from lesioncast.bundle.config import BundleConfig
from lesioncast.bundle.io import Weights
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.errors import TrainingError
from lesioncast.imaging.intervals import interval_ranges
from lesioncast.training.checkpoint import EMA, Checkpoint
from lesioncast.training.experiment import CONTROL, UNET, Stage
from lesioncast.training.lesion_load_prior import fit_lesion_load_prior, load_prior_data
from lesioncast.training.progress import METRICS, read_metrics
from lesioncast.training.trainer import final_checkpoint
from storage import Store

logger = logging.getLogger(__name__)

LESION_LOAD_PRIOR = "lesion_load_prior"  # submodule of the ControlNet


def export_bundle(stage: Stage, store: Store, path: Path, *, sampler: SamplerConfig) -> str:
    """Write the bundle of a finished stage 2 to `path` and return its digest."""
    last = final_checkpoint(stage)
    assert stage.pretrained is not None
    prior = fit_prior_of_stage(stage, store)
    cases = [store.cases[index] for index in stage.experiment.cases.cases]
    digest = save_bundle(
        path,
        BundleConfig(
            stage.experiment.model,
            store.settings.for_patient(),
            sampler,
            simulated=store.table.trial.simulated,
            brain_mask_share=float(np.mean([*map(store.cleared_by_brain_mask, cases)])),
            intervals=interval_ranges(cases),
            baseline_only=stage.settings.session_dropout > 0,
        ),
        unet=stage.pretrained.tensors(EMA, UNET),
        control={**last.tensors(EMA, CONTROL), **prior.weights},
        metrics={
            "data": describe_data(store, len(cases)),
            "cases": sorted(case.digest[:CASE_DIGITS] for case in cases),
            "seed": stage.experiment.seed,
            "stages": {
                "pretrain": _final_metrics(stage.pretrained),
                "finetune": _final_metrics(last),
            },
            "lesion_load_prior": prior.metrics,
        },
    )
    logger.info("bundle %s (%s)", path, digest[:12])
    return digest


@dataclass(frozen=True)
class FittedPrior:
    """Fitted lesion load prior; without weights for a model that has none."""

    #: Weights by their names in the ControlNet.
    weights: Weights
    #: Number of cases and the cross entropy of the fit, in nats.
    metrics: Mapping[str, float] | None


def fit_prior_of_stage(stage: Stage, store: Store) -> FittedPrior:
    """Fit the lesion load prior to the training cases of a stage."""
    if not stage.experiment.model.unet.lesion_load_thresholds:
        return FittedPrior({}, None)
    prior = stage.build().get_submodule(f"{CONTROL}{LESION_LOAD_PRIOR}")
    assert isinstance(prior, LesionLoadPrior)
    training_data = load_prior_data(
        [store.cases[index] for index in stage.experiment.cases.cases],
        store,
        stage.experiment.model,
    )
    cases = len(training_data.arm)
    loss = fit_lesion_load_prior(
        prior,
        training_data,
        stage.settings.dropout_rates,
        seed=stage.experiment.seed,
        post_baseline=stage.post_baseline_channels,
    )
    logger.info("lesion load prior fitted to %d cases: %.3f nats per case", cases, loss)
    weights = {f"{LESION_LOAD_PRIOR}.{name}": value for name, value in prior.state_dict().items()}
    return FittedPrior(weights, {"cases": cases, "nats": loss})


def describe_data(store: Store, cases: int) -> str:
    """Describe the training data in one sentence, as the trial described itself."""
    trial = store.table.trial
    warning = "; simulated patients, which are no evidence about real ones"
    return (
        f"{cases} training cases of {trial.name or 'a trial without a name'}"
        f"{warning if trial.simulated else ''}."
    )


def _final_metrics(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """Return the metrics of the checkpoint's step, and the settings of its stage."""
    run = checkpoint.folder.parent
    last = [line for line in read_metrics(run) if line["step"] == checkpoint.step]
    if not last:
        raise TrainingError(
            f"{run / METRICS}: expected metrics of step {checkpoint.step}, got none; "
            f"run jobs/{run.name}.py --fresh"
        )
    return {**last[-1], "settings": checkpoint.identity[run.name]}
