"""One closed, typed configuration for every job: each room's settings under its own key.

root: $LESIONCAST_ROOT (default ~/lesioncast) / name, where a job keeps what it makes.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.cluster.connection import RaySettings
from lesioncast.diffusion.controlnet import ControlConfig
from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.objective import ObjectiveConfig
from lesioncast.diffusion.schedule import ScheduleConfig
from lesioncast.diffusion.solvers import SamplerConfig
from lesioncast.diffusion.unet import UNetConfig
from lesioncast.errors import ConfigError
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.imaging.covariates import Covariate
from lesioncast.parsing import parse_dataclass
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.training.settings import TrainSettings
from storage.settings import StoreSettings, TrialLayout


@dataclass(frozen=True)
class Paths:
    """Where the jobs of one configuration keep what they make, below `root`."""

    root: Path

    @property
    def bids(self) -> Path:
        """The simulated trial, or a link to a real one."""
        return self.root / "bids"

    @property
    def store(self) -> Path:
        """The Zarr store."""
        return self.root / "store.zarr"

    @property
    def qc(self) -> Path:
        """What a person should look at before training."""
        return self.root / "qc"

    @property
    def runs(self) -> Path:
        """Checkpoints and logs of both training stages."""
        return self.root / "runs"

    @property
    def bundle(self) -> Path:
        """What training hands to forecasting and serving."""
        return self.root / "bundle"

    @property
    def forecasts(self) -> Path:
        """Forecasts as a BIDS derivative."""
        return self.root / "forecasts"

    @property
    def evaluation(self) -> Path:
        """Tables, figures and per-case predictions."""
        return self.root / "evaluation"


@dataclass(frozen=True)
class Config:
    """Everything a job may be told; see the class of each field.

    `covariates` are columns of participants.tsv that the ControlNet sees: a name, fitted on the
    training split, or a `Covariate` in full. None of them is the paper's model.
    """

    name: str
    simulation: SimulationSettings
    store: StoreSettings
    pretrain: TrainSettings
    finetune: TrainSettings
    seed: int = 0
    arms: tuple[str, ...] = PAPER_ARM_NAMES
    covariates: tuple[str | Covariate, ...] = ()
    unet: UNetConfig = field(default_factory=UNetConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    forecast: ForecastSettings = field(default_factory=ForecastSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    ray: RaySettings = field(default_factory=RaySettings)

    @property
    def paths(self) -> Paths:
        """Default folders of this configuration's jobs."""
        root = os.environ.get("LESIONCAST_ROOT", "~/lesioncast")
        return Paths(Path(root).expanduser().absolute() / self.name)

    @property
    def model(self) -> ModelConfig:
        """What shapes the weights; covariates join it once they are fitted."""
        return ModelConfig(self.arms, self.unet, self.control, self.schedule, self.objective)


def load_config(
    path: Path, overrides: Sequence[str] = (), *, mapping: Path | None = None
) -> Config:
    """The configuration in a YAML file, with overrides such as `pretrain.steps=50`.

    `mapping` is a YAML file that says where a trial keeps what, in place of `store.layout`.

    Raises `ConfigError` for a file that is missing, a key nobody knows (naming its neighbours) or a
    value of the wrong kind.
    """
    raw = _read_yaml(path)
    for override in overrides:
        _override(raw, override)
    config = parse_dataclass(Config, raw, source=str(path))
    if mapping is None:
        return config
    layout = parse_dataclass(TrialLayout, _read_yaml(mapping), source=str(mapping))
    return dataclasses.replace(config, store=dataclasses.replace(config.store, layout=layout))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: expected YAML, got {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and their values, got {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"--set takes key=value, such as pretrain.steps=50; got {override!r}")
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    section[last] = yaml.safe_load(value)
