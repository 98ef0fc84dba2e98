"""The two stages of the paper (section 2) as networks to train and what a run of them is."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lesioncast.config import Config
from lesioncast.covariates import encode_covariates, fit_covariates
from lesioncast.diffusion.controlnet import ControlNet
from lesioncast.diffusion.load import with_lesions
from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.objective import ObjectiveConfig
from lesioncast.diffusion.unet import UNet
from lesioncast.slab import SESSIONS, START, TARGET, Channels, named, outside, sessions_of
from lesioncast.training.cache import CaseCache, training_cases
from lesioncast.training.checkpoint import EMA, Checkpoint
from lesioncast.training.placement import GIB
from lesioncast.training.settings import OPERATIONAL, TrainSettings
from storage import Store

# Where the networks of both stages keep their weights in a checkpoint.
UNET, CONTROL = "unet.", "control."


class Predicted(NamedTuple):
    """What the networks make of a batch of b cases: the `prediction` [b, 2, s, h, w]. Where the
    model knows of lesion loads, the logits of `load` [b, classes], and the prediction is of the
    cases `with_lesions` alone, as are z and logsnr."""

    prediction: Tensor
    load: Tensor | None = None


class UNetAlone(nn.Module):
    """Stage 1: the UNet learns w096 FLAIR and NET2 jointly, given the arm."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        condition: None,
        covariates: None = None,
        load: Tensor | None = None,
    ) -> Predicted:
        """Given the arm alone."""
        if load is None:
            return Predicted(self.unet(z, logsnr, arm))
        rows = with_lesions(load)
        prediction = self.unet(z, logsnr, arm[rows], None, load[rows])
        return Predicted(prediction, self.unet.load_logits(arm))


class ControlledUNet(nn.Module):
    """Stage 2: the ControlNet learns to steer the frozen UNet by the patient's images."""

    def __init__(self, unet: UNet, control: ControlNet) -> None:
        super().__init__()
        self.unet = unet.eval()
        self.unet.requires_grad_(requires_grad=False)
        self.control = control

    def train(self, mode: bool = True) -> "ControlledUNet":  # noqa: FBT001, FBT002
        """The UNet stays in evaluation mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        condition: Tensor,
        covariates: Tensor | None = None,
        load: Tensor | None = None,
    ) -> Predicted:
        """`condition` is c_f [b, channels, s, h, w]."""
        if load is None:
            return Predicted(self._predict(z, logsnr, arm, condition, covariates))
        rows = with_lesions(load)
        known = None if covariates is None else covariates[rows]
        prediction = self._predict(z, logsnr, arm[rows], condition[rows], known, load[rows])
        features = self.control.load_features(condition, covariates)
        logits = self.unet.load_logits(arm) + self.control.load_logits(arm, features)
        return Predicted(prediction, logits)

    def _predict(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        condition: Tensor,
        covariates: Tensor | None,
        load: Tensor | None = None,
    ) -> Tensor:
        hint = self.control.encode(condition, covariates)
        residuals = self.control(z, logsnr, arm, hint, load)
        prediction: Tensor = self.unet(z, logsnr, arm, residuals, load)
        return prediction


@dataclass(frozen=True)
class Experiment:
    """What both stages share: networks, cases, the folder of runs, and the seed."""

    model: ModelConfig
    cases: CaseCache
    runs: Path
    seed: int


def experiment_of(config: Config, store: Store, runs: Path) -> Experiment:
    """The configuration's experiment on a store, its covariates fitted on the training cases.

    Raises TrainingError or ConfigError where the store has not what the configuration asks for.
    """
    cache = training_cases(store, config.arms)
    cases = [store.cases[index] for index in cache.cases]
    fitted = fit_covariates(config.covariates, cases)
    if fitted:
        values = np.stack([encode_covariates(fitted, case) for case in cases])
        cache = replace(cache, covariates=values)
    return Experiment(replace(config.model, covariates=fitted), cache, runs, config.seed)


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
        return None if self.pretrained is None else named(self.experiment.model.control.condition)

    @property
    def later(self) -> npt.NDArray[np.bool_]:
        """Which of the model's channels were seen after w000, [channel]."""
        return outside(named(self.experiment.model.control.condition), (START,))

    @property
    def cases(self) -> CaseCache:
        """The cases with the sessions that these networks see: in stage 1 w096 alone."""
        seen = sessions_of((*TARGET, *(self.condition or ())))
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
        settings = {k: v for k, v in asdict(self.settings).items() if k not in OPERATIONAL}
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


def pretraining(settings: TrainSettings, experiment: Experiment) -> Stage:
    """Stage 1."""
    return Stage("pretrain", _unet_alone, settings, experiment)


def finetuning(settings: TrainSettings, experiment: Experiment, pretrained: Checkpoint) -> Stage:
    """Stage 2, on the averaged weights of a stage 1."""
    return Stage("finetune", _controlled_unet, settings, experiment, pretrained)


def _unet_alone(stage: Stage) -> nn.Module:
    return UNetAlone(UNet(stage.experiment.model.unet))


def _controlled_unet(stage: Stage) -> nn.Module:
    assert stage.pretrained is not None
    model = stage.experiment.model
    unet = UNet(model.unet)
    unet.load_state_dict(stage.pretrained.tensors(EMA, UNET))
    control = ControlNet.from_unet(model.control, unet, model.covariates)
    return ControlledUNet(unet, control)
