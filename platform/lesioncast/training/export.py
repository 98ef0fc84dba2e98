"""Export a bundle from the last checkpoint of stage 2."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lesioncast.bundle.bundle import save_bundle
from lesioncast.bundle.config import BundleConfig
from lesioncast.bundle.description import CASE_DIGITS
from lesioncast.bundle.io import Weights
from lesioncast.bundle.typicality import write_typicality
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.errors import TrainingError
from lesioncast.imaging.channels import MASKS, OUTCOME, SESSIONS
from lesioncast.imaging.intervals import interval_ranges
from lesioncast.training.checkpoint import EMA, Checkpoint
from lesioncast.training.data.typicality import fit_typicality
from lesioncast.training.experiment import CONTROL, UNET, Stage
from lesioncast.training.lesion_load_prior.bundle_calibration import (
    CALIBRATION_SPLIT,
    calibrate_on_split,
)
from lesioncast.training.lesion_load_prior.data import fit_reader, load_prior_data
from lesioncast.training.lesion_load_prior.dropout import PriorDropout
from lesioncast.training.lesion_load_prior.fit import fit_lesion_load_prior
from lesioncast.training.progress import METRICS, read_metrics
from lesioncast.training.spatial.fit import ratios_of_run
from lesioncast.training.trainer import final_checkpoint
from storage import Store

logger = logging.getLogger(__name__)

LESION_LOAD_PRIOR = "lesion_load_prior"  # submodule of the ControlNet


def export_bundle(stage: Stage, store: Store, path: Path, *, sampler: SamplerConfig) -> str:
    """Write the bundle of a finished stage 2 to `path` and return its digest."""
    last = final_checkpoint(stage)
    assert stage.pretrained is not None
    fitted = fit_prior_of_stage(stage, store)
    cases = [store.cases[index] for index in stage.experiment.cases.cases]
    # The prior's training data tells the active cases; reading them again takes half a minute.
    active = count_active(stage, store) if fitted.active is None else fitted.active
    balance = training_balance(stage, active=active)
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
            balanced_odds_ratio=balance.odds_ratio,
            touching_ratios=ratios_of_run(stage.experiment),
        ),
        unet=stage.pretrained.tensors(EMA, UNET),
        control={**last.tensors(EMA, CONTROL), **fitted.weights},
        base=None if stage.experiment.base is None else stage.experiment.base.path,
        metrics={
            "data": describe_data(store, len(cases)),
            "cases": sorted(case.digest[:CASE_DIGITS] for case in cases),
            "seed": stage.experiment.seed,
            "stages": {
                "pretrain": _final_metrics(stage.pretrained),
                "finetune": _final_metrics(last),
            },
            "lesion_load_prior": fitted.metrics,
            "balance": asdict(balance),
        },
        calibration=calibrate_on_split(
            [] if fitted.prior is None else [fitted.prior],
            store,
            stage.experiment.model,
            split=CALIBRATION_SPLIT,
        ),
    )
    write_typicality(path, digest, fit_typicality(store, cases))
    logger.info("bundle %s (%s)", path, digest[:12])
    return digest


@dataclass(frozen=True)
class TrainingBalance:
    """Active and inactive training cases, and whether stage 2 saw equally many of both.

    A model with lesion loads samples activity from its prior, which is fitted to all cases, so
    that a balanced stage 2 does not bias it.
    """

    active: int
    inactive: int
    balanced: bool
    lesion_loads: bool

    @property
    def odds_ratio(self) -> float:
        """Return how many times too high the odds of activity are in what stage 2 learned."""
        biased = self.balanced and not self.lesion_loads
        return self.inactive / self.active if biased else 1.0


def training_balance(stage: Stage, *, active: int) -> TrainingBalance:
    """Return the balance of a stage with this number of active training cases."""
    return TrainingBalance(
        active=active,
        inactive=len(stage.experiment.cases.cases) - active,
        balanced=stage.settings.balanced,
        lesion_loads=bool(stage.experiment.model.unet.lesion_load_thresholds),
    )


def count_active(stage: Stage, store: Store) -> int:
    """Count the training cases of a stage that have NET2 at outcome."""
    net2 = SESSIONS.index(OUTCOME), MASKS.index("net2")

    def is_active(index: int) -> bool:
        return bool(store.read(index).masks[net2].any())

    with ThreadPoolExecutor() as threads:
        return sum(threads.map(is_active, stage.experiment.cases.cases))


@dataclass(frozen=True)
class FittedPrior:
    """Fitted lesion load prior; without weights for a model that has none."""

    #: Weights by their names in the ControlNet.
    weights: Weights
    #: Number of cases and the cross entropy of the fit, in nats.
    metrics: Mapping[str, float] | None
    #: Number of active cases it was fitted to; None without a fit.
    active: int | None = None
    prior: LesionLoadPrior | None = None


def fit_prior_of_stage(stage: Stage, store: Store) -> FittedPrior:
    """Fit the lesion load prior to the training cases of a stage."""
    if not stage.experiment.model.unet.lesion_load_thresholds:
        return FittedPrior({}, None)
    prior = stage.build().get_submodule(f"{CONTROL}{LESION_LOAD_PRIOR}")
    assert isinstance(prior, LesionLoadPrior)
    loaded = load_prior_data(
        [store.cases[index] for index in stage.experiment.cases.cases],
        store,
        stage.experiment.model,
    )
    training_data = fit_reader(prior, loaded, seed=stage.experiment.seed)
    cases = len(training_data.arm)
    loss = fit_lesion_load_prior(
        prior,
        training_data,
        PriorDropout(stage.settings.dropout_rates),
        seed=stage.experiment.seed,
    )
    logger.info("lesion load prior fitted to %d cases: %.3f nats per case", cases, loss)
    weights = {f"{LESION_LOAD_PRIOR}.{name}": value for name, value in prior.state_dict().items()}
    active = int((training_data.lesion_load > 0).sum())
    return FittedPrior(weights, {"cases": cases, "nats": loss}, active, prior)


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
