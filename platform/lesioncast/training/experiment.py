"""What a run of each stage of the paper (section 2) is: networks, cases, settings, identity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.objective import ObjectiveConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.imaging.channels import (
    BASELINE_SESSION,
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

# Where the networks of both stages keep their weights in a checkpoint.
UNET, CONTROL = "unet.", "control."


@dataclass(frozen=True)
class Experiment:
    """What both stages share: networks, cases, the folder of runs, and the seed."""

    model: ModelConfig
    cases: CaseSelection
    runs: Path
    seed: int


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
    cache = training_cases(store, model.arms)
    cases = [store.cases[index] for index in cache.cases]
    fitted = fit_covariates(covariates, cases)
    if fitted:
        values = np.stack([encode_covariates(fitted, case) for case in cases])
        cache = replace(cache, covariates=values)
    return Experiment(replace(model, covariates=fitted), cache, runs, seed)


@dataclass(frozen=True)
class Stage:
    """One stage's run: `name` is its folder among the runs; `networks` builds what is trained.

    `pretrained` is the checkpoint of stage 1 that stage 2 builds upon.
    """

    name: str
    networks: Callable[["Stage"], nn.Module]
    settings: TrainSettings
    experiment: Experiment
    pretrained: Checkpoint | None = None

    @property
    def folder(self) -> Path:
        """Where the run keeps its checkpoints and its log."""
        return self.experiment.runs / self.name

    @property
    def condition(self) -> Channels | None:
        """The channels of the patient's images that the networks see; none in stage 1."""
        return (
            None
            if self.pretrained is None
            else parse_channels(self.experiment.model.control.condition)
        )

    @property
    def post_baseline_channels(self) -> npt.NDArray[np.bool_]:
        """Which of the model's channels were seen after w000, [channel]."""
        return channels_outside_sessions(
            parse_channels(self.experiment.model.control.condition), (BASELINE_SESSION,)
        )

    @property
    def cases(self) -> CaseSelection:
        """The cases with the sessions that these networks see: in stage 1 w096 alone."""
        seen = sessions_of((*TARGET_CHANNELS, *(self.condition or ())))
        return replace(
            self.experiment.cases,
            sessions=tuple(session for session in SESSIONS if session in seen),
            limit=self.settings.cache_gib * GIB,
        )

    @property
    def objective(self) -> ObjectiveConfig:
        """The model's objective, with this stage's own weight of FLAIR where it has one."""
        objective, weight = self.experiment.model.objective, self.settings.flair_weight
        return objective if weight is None else replace(objective, flair_weight=weight)

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that shapes the weights, as JSON; resuming with another identity is refused.

        Stage 1 sees no covariates, so that one may serve stages 2 with and without.
        """
        settings = {k: v for k, v in asdict(self.settings).items() if k not in NON_IDENTITY_FIELDS}
        model = asdict(self.experiment.model)
        if self.condition is None:
            del model["covariates"]
        return {
            "seed": self.experiment.seed,
            self.name: settings,
            "model": model,
            "cases": self.experiment.cases.digest,
            "pretrained": dict(self.pretrained.digests) if self.pretrained else None,
        }

    def build(self) -> nn.Module:
        """The networks at the start of the run: the same on every worker."""
        with torch.random.fork_rng():
            torch.manual_seed(self.experiment.seed)
            return self.networks(self)


def pretrain_stage(settings: TrainSettings, experiment: Experiment) -> Stage:
    """Stage 1."""
    return Stage("pretrain", _unet_alone, settings, experiment)


def finetune_stage(
    settings: TrainSettings, experiment: Experiment, pretrained: Checkpoint
) -> Stage:
    """Stage 2, on the averaged weights of a stage 1."""
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
