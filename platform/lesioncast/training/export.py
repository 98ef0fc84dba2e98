"""From the end of stage 2 to a bundle."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lesioncast.bundle.bundle import save_bundle
from lesioncast.bundle.config import BundleConfig
from lesioncast.bundle.io import Weights, read_json
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.errors import TrainingError
from lesioncast.simulation.ground_truth import has_ground_truth
from lesioncast.training.checkpoint import EMA, Checkpoint
from lesioncast.training.experiment import CONTROL, UNET, Stage
from lesioncast.training.lesion_load_prior import fit_load_prior, load_prior_data
from lesioncast.training.progress import read_metrics
from lesioncast.training.trainer import final_checkpoint
from storage import Store

logger = logging.getLogger(__name__)


def export_bundle(stage: Stage, store: Store, path: Path, *, sampler: SamplerConfig) -> str:
    """Write the bundle of a finished stage 2 to `path`; returns its digest."""
    last = final_checkpoint(stage)
    assert stage.pretrained is not None
    prior, fit = fitted_load_prior(stage, store)
    digest = save_bundle(
        path,
        BundleConfig(
            stage.experiment.model,
            store.spec.slab,
            store.spec.spacing,
            sampler,
            from_start=stage.settings.session_dropout > 0,
        ),
        unet=stage.pretrained.tensors(EMA, UNET),
        control={**last.tensors(EMA, CONTROL), **prior},
        metrics={
            "data": describe_data(store, len(stage.experiment.cases.cases)),
            "seed": stage.experiment.seed,
            "stages": {
                "pretrain": _final_metrics(stage.pretrained),
                "finetune": _final_metrics(last),
            },
            "load_prior": fit,
        },
    )
    logger.info("bundle %s (%s)", path, digest[:12])
    return digest


def fitted_load_prior(stage: Stage, store: Store) -> tuple[Weights, Mapping[str, float] | None]:
    """The weights of the prior of the lesion load, by the ControlNet's names, and how the fit went;
    none for a model without loads."""
    if not stage.experiment.model.unet.lesion_load_thresholds:
        return {}, None
    prior = stage.build().get_submodule("control.load_prior")
    assert isinstance(prior, LesionLoadPrior)
    patients = load_prior_data(
        [store.cases[index] for index in stage.experiment.cases.cases],
        store,
        stage.experiment.model,
    )
    seed = stage.experiment.seed
    loss = fit_load_prior(
        prior, patients, stage.settings, seed=seed, later=stage.post_baseline_channels
    )
    logger.info("lesion load of %d cases: %.3f nats a case", len(patients.arm), loss)
    weights = {f"load_prior.{name}": each for name, each in prior.state_dict().items()}
    return weights, {"cases": len(patients.arm), "nats": loss}


def describe_data(store: Store, cases: int) -> str:
    """What the weights were trained on, as far as the store's BIDS folder still tells."""
    bids = Path(store.table.bids)
    description = bids / "dataset_description.json"
    name = read_json(description)["Name"] if description.is_file() else "a BIDS trial"
    simulated = has_ground_truth(bids)
    warning = "; simulated patients, which is no evidence about real ones" if simulated else ""
    return f"{cases} training cases of {name}{warning}."


def _final_metrics(checkpoint: Checkpoint) -> Mapping[str, Any]:
    run = checkpoint.folder.parent
    last = [line for line in read_metrics(run) if line["step"] == checkpoint.step]
    if not last:
        raise TrainingError(f"{run}: its metrics do not reach step {checkpoint.step}")
    return {**last[-1], "settings": checkpoint.identity[run.name]}
