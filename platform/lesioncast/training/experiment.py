"""Define the run of each stage of the paper (section 2): networks, cases, settings, identity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.imaging.channels import (
    BASELINE,
    SESSIONS,
    TARGET_CHANNELS,
    Channels,
    channels_outside_sessions,
    parse_channels,
    sessions_of,
)
from lesioncast.imaging.covariates import Covariate, encode_covariates, fit_covariates
from lesioncast.training.checkpoint import EMA, Checkpoint
from lesioncast.training.data.cache_location import GIB
from lesioncast.training.data.selection import CaseSelection, training_cases
from lesioncast.training.modules import FinetuneModule, PretrainModule
from lesioncast.training.settings import NON_IDENTITY_FIELDS, TrainSettings
from storage import Store

# Prefixes of the weights of each network in a checkpoint.
UNET, CONTROL = "unet.", "control."


@dataclass(frozen=True)
class FittedBase:
    """The spatial prior of a run, which both stages read."""

    #: File of the prior and its SHA-256.
    path: Path
    digest: str
    #: Training cases with new lesions, bool [case].
    active: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Experiment:
    """Model, training cases, folder of runs and seed, which both stages share."""

    model: ModelConfig
    cases: CaseSelection
    runs: Path
    seed: int
    #: None for networks without a base map.
    base: FittedBase | None = None


def experiment_of(
    store: Store,
    runs: Path,
    *,
    model: ModelConfig,
    covariates: Sequence[str | Covariate] = (),
    seed: int,
) -> Experiment:
    """Return the experiment on a store, its covariates fitted on the training cases.

    Raises TrainingError or ConfigError if the store lacks what the configuration asks for.
    """
    selection = training_cases(store, model.arms)
    cases = [store.cases[index] for index in selection.cases]
    fitted = fit_covariates(covariates, cases)
    if fitted:
        values = np.stack([encode_covariates(fitted, case) for case in cases])
        selection = replace(selection, covariates=values)
    return Experiment(replace(model, covariates=fitted), selection, runs, seed)


@dataclass(frozen=True)
class Stage:
    """Run of one stage."""

    #: Name of the stage and of its folder among the runs.
    name: str
    #: Build the networks that are trained.
    networks: Callable[["Stage"], nn.Module]
    settings: TrainSettings
    experiment: Experiment
    #: Checkpoint of stage 1 that stage 2 starts from; None in stage 1.
    pretrained: Checkpoint | None = None

    @property
    def folder(self) -> Path:
        """Return the folder of the run's checkpoints and metrics."""
        return self.experiment.runs / self.name

    @property
    def condition(self) -> Channels | None:
        """Return the channels of the condition c_f; None in stage 1."""
        return (
            None
            if self.pretrained is None
            else parse_channels(self.experiment.model.control.condition)
        )

    @property
    def post_baseline_channels(self) -> npt.NDArray[np.bool_]:
        """Return which channels of the model's condition come after baseline, bool [channel]."""
        return channels_outside_sessions(
            parse_channels(self.experiment.model.control.condition), (BASELINE,)
        )

    @property
    def cases(self) -> CaseSelection:
        """Return the cases with the sessions that the networks use: in stage 1 only the outcome."""
        used = sessions_of((*TARGET_CHANNELS, *(self.condition or ())))
        return replace(
            self.experiment.cases,
            sessions=tuple(session for session in SESSIONS if session in used),
            limit=self.settings.cache_gib * GIB,
        )

    @property
    def objective(self) -> ObjectiveConfig:
        """Return the model's objective, with the stage's FLAIR weight if it sets one."""
        objective, weight = self.experiment.model.objective, self.settings.flair_weight
        return objective if weight is None else replace(objective, flair_weight=weight)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Return all that shapes the weights, as JSON. Only an equal identity may resume."""
        settings = {k: v for k, v in asdict(self.settings).items() if k not in NON_IDENTITY_FIELDS}
        model = asdict(self.experiment.model)
        if self.condition is None:
            # Stage 1 has no covariates, so that one stage 1 serves stages 2 with and without them.
            del model["covariates"]
        base = self.experiment.base
        return {
            "seed": self.experiment.seed,
            self.name: settings,
            "model": model,
            "cases": self.experiment.cases.digest,
            "pretrained": dict(self.pretrained.digests) if self.pretrained else None,
            **({} if base is None else {"spatial_prior": base.digest}),
        }

    def build(self) -> nn.Module:
        """Build the networks as they start the run, equal on every worker."""
        with torch.random.fork_rng():
            torch.manual_seed(self.experiment.seed)
            return self.networks(self)


def pretrain_stage(settings: TrainSettings, experiment: Experiment) -> Stage:
    """Return the run of stage 1."""
    return Stage("pretrain", _unet_alone, settings, experiment)


def finetune_stage(
    settings: TrainSettings, experiment: Experiment, pretrained: Checkpoint
) -> Stage:
    """Return the run of stage 2, which starts from the averaged weights of a stage 1."""
    return Stage("finetune", _controlled_unet, settings, experiment, pretrained)


def _unet_alone(stage: Stage) -> nn.Module:
    return PretrainModule(UNet(stage.experiment.model.unet))


def _controlled_unet(stage: Stage) -> nn.Module:
    assert stage.pretrained is not None
    model = stage.experiment.model
    unet = UNet(model.unet)
    unet.load_state_dict(stage.pretrained.tensors(EMA, UNET))
    control = ControlNet.from_unet(model.control, unet, model.covariates)
    return FinetuneModule(unet, control)
