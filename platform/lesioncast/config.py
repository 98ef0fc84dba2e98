"""The configuration of all jobs: the settings of every package, each under its own key.

A configuration is closed: an unknown key is an error. Jobs write to the folder
$LESIONCAST_ROOT/<name>, by default ~/lesioncast/<name>.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lesioncast.arms import PAPER_ARM_NAMES, describe_label_collision
from lesioncast.cluster.connection import RaySettings
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, SamplerConfig, ScheduleConfig
from lesioncast.errors import ConfigError
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.imaging.covariates import Covariate
from lesioncast.imaging.lesions import lesion_load_voxels
from lesioncast.parsing import RemovedKeys, parse_dataclass, refuse_removed
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.training.settings import TrainSettings
from lesioncast.yaml_text import parse_yaml
from storage.backends.backend import is_url
from storage.settings import StoreSettings, TrialLayout
from storage.text_files import TextEncodingError, read_text

STAGES = ("pretrain", "finetune")
#: Classes of lesion load for a configuration that names none, in mm3.
LESION_LOAD_MM3 = (0.0, 270.0, 675.0, 1620.0, 3240.0, 6480.0)
_OLD_DROP_RATES = ("arm_drop", "condition_drop", "channel_drop", "session_drop", "covariate_drop")
REMOVED_KEYS = RemovedKeys(
    {
        "cohort": "simulation",
        "store.split": "store.split_fractions",
        "store.max_tilt": "store.max_obliquity",
        "unet.head": "unet.voxel_head_width",
        "unet.loads": "lesion_load_mm3",
        "unet.lesion_load_thresholds": "lesion_load_mm3",
        "unet.base_map": "priors",
        "unet.target_channels": None,
        "control.voxels": "control.voxel_mlp_width",
        "control.flair_reader_spacing": "flair_reader",
        "sampler.grid": "sampler.spacing",
        "forecast.opening": "forecast.apply_opening",
    }
    | {f"{stage}.{key}": f"{stage}.{key}out" for stage in STAGES for key in _OLD_DROP_RATES}
    | {f"{stage}.keep": f"{stage}.keep_checkpoints" for stage in STAGES}
    | {f"{stage}.threads": f"{stage}.cpus_per_worker" for stage in STAGES},
    values={
        ("sampler.solver", "sde2m"): "sde-dpmsolver++",
        ("sampler.solver", "dpm2m"): "dpmsolver++",
        ("objective.prediction", "odds"): "log_odds",
    },
)
"""Names of earlier versions that are no longer taken, with their new names."""


@dataclass(frozen=True)
class Paths:
    """Default folders of the jobs of one configuration, below `root`."""

    root: Path

    @property
    def bids(self) -> Path:
        """Return the folder of the trial: simulated, or a link to a real one."""
        return self.root / "bids"

    @property
    def store(self) -> Path:
        """Return the folder of the Zarr store."""
        return self.root / "store.zarr"

    @property
    def qc(self) -> Path:
        """Return the folder of the quality control report."""
        return self.root / "qc"

    @property
    def runs(self) -> Path:
        """Return the folder of the checkpoints and logs of both training stages."""
        return self.root / "runs"

    @property
    def bundle(self) -> Path:
        """Return the folder of the bundle that training hands to forecasting and serving."""
        return self.root / "bundle"

    @property
    def forecasts(self) -> Path:
        """Return the folder of the forecasts, a BIDS derivative."""
        return self.root / "forecasts"

    @property
    def evaluation(self) -> Path:
        """Return the folder of the evaluation: tables, figures and predictions by case."""
        return self.root / "evaluation"


@dataclass(frozen=True)
class Config:
    """Settings of all jobs."""

    #: Name of the configuration and of the folder that its jobs write to.
    name: str
    #: The simulated trial.
    simulation: SimulationSettings
    #: The conversion of a trial to a store.
    store: StoreSettings
    #: Training of stage 1, the UNet.
    pretrain: TrainSettings
    #: Training of stage 2, the ControlNet.
    finetune: TrainSettings
    #: Seed of the split, of both training stages and of sampling.
    seed: int = 0
    #: Treatment arms, in the order of the network's table of arms.
    arms: tuple[str, ...] = PAPER_ARM_NAMES
    #: Columns of participants.tsv that the ControlNet sees, none in the paper's model. A name alone
    #: is scaled on the training split; a `Covariate` names its scaling or categories itself.
    covariates: tuple[str | Covariate, ...] = ()
    #: Priors that the networks start from: `none`, as in the paper; `load`, the prognostic prior of
    #: the lesion load; `both`, that and the spatial prior, a base map of each patient. By default
    #: `load` if `lesion_load_mm3` is given, else `none`.
    priors: Literal["none", "load", "both"] | None = None
    #: Least volume in mm3 of new lesions in each lesion load class above "no lesion"; the first is
    #: 0. Without it, a configuration with priors has the classes of LESION_LOAD_MM3.
    lesion_load_mm3: tuple[float, ...] = ()
    #: Let the lesion load prior recognise lesions in FLAIR. Without, it reads masks alone, and a
    #: patient without masks gets little more than the rate of the arm.
    flair_reader: bool = False
    #: Shape of the UNet.
    unet: UNetConfig = field(default_factory=UNetConfig)
    #: Shape of the ControlNet.
    control: ControlConfig = field(default_factory=ControlConfig)
    #: Noise schedule.
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    #: Training objective.
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    #: Solver that draws samples.
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    #: Forecasts of subjects.
    forecast: ForecastSettings = field(default_factory=ForecastSettings)
    #: Evaluation on the test split.
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    #: The local Ray cluster.
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        if problem := describe_label_collision(self.arms):
            raise ValueError(f"arms: expected {problem}; rename one, since files are named so")
        lesion_load_voxels(self.lesion_load_mm3, self.store.spacing)
        # Raises for priors that the rest of the configuration does not fit. The number of arms is
        # left to the jobs that have networks: a trial of other arms can be converted first.
        model = self._model(dataclasses.replace(self.unet, arms=len(self.arms)))
        asked_for = self.flair_reader and self.priors != "none"
        if asked_for and not model.unet.lesion_load_thresholds:
            raise ValueError(
                "flair_reader: expected lesion loads beside it, got none; set priors to load or "
                "both, or flair_reader to false, since only the lesion load prior reads FLAIR"
            )

    @property
    def paths(self) -> Paths:
        """Return the default folders of this configuration's jobs.

        Raise ConfigError if $LESIONCAST_ROOT is a URL, which would name a folder called s3:.
        """
        root = os.environ.get("LESIONCAST_ROOT", "~/lesioncast")
        if is_url(root):
            raise ConfigError(
                f"LESIONCAST_ROOT: expected a local folder, got the URL {root}; mount it, or give "
                "the URL of a store with --store"
            )
        return Paths(Path(root).expanduser().absolute() / self.name)

    @property
    def model(self) -> ModelConfig:
        """Return what determines the shape of the weights, except covariates, which are fitted.

        Raise ValueError if `unet.arms` is not the number of named arms.
        """
        return self._model(self.unet)

    def _model(self, unet: UNetConfig) -> ModelConfig:
        priors = self.priors or ("load" if self.lesion_load_mm3 else "none")
        volumes = () if priors == "none" else self.lesion_load_mm3 or LESION_LOAD_MM3
        unet = dataclasses.replace(
            unet,
            lesion_load_thresholds=lesion_load_voxels(volumes, self.store.spacing),
            base_map=priors == "both",
        )
        # A preset that reads FLAIR can be run without any prior, by `priors: none` alone.
        reads = self.flair_reader and self.priors != "none"
        spacing = self.store.spacing if reads else None
        control = dataclasses.replace(self.control, flair_reader_spacing=spacing)
        return ModelConfig(self.arms, unet, control, self.schedule, self.objective)


def load_config(
    path: Path, overrides: Sequence[str] = (), *, mapping: Path | None = None
) -> Config:
    """Return the configuration in a YAML file, with overrides such as `pretrain.steps=50`.

    `mapping` is a YAML file with the layout of a trial that is not BIDS. It replaces
    `store.layout`.

    Raise ConfigError for a missing file, an unknown key (the message names the nearest keys), an
    old key (the message names the new one) or a value of the wrong type.
    """
    raw = _read_yaml(path)
    refuse_removed(raw, REMOVED_KEYS, source=str(path))
    for override in overrides:
        _override(raw, override)
        # Each override by itself, so that the message names it and not the file.
        refuse_removed(raw, REMOVED_KEYS, source=f"--set {override}")
    config = parse_dataclass(Config, raw, source=str(path))
    if mapping is None:
        return config
    layout = parse_dataclass(TrialLayout, _read_yaml(mapping), source=str(mapping))
    return dataclasses.replace(config, store=dataclasses.replace(config.store, layout=layout))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except TextEncodingError as error:
        raise ConfigError(str(error)) from error
    raw = parse_yaml(text, source=str(path))
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and their values, got {type(raw).__name__}")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key of `raw` to the YAML value after the equals sign."""
    key, separator, value = override.partition("=")
    if not separator:
        raise ConfigError(f"--set: expected key=value, such as pretrain.steps=50; got {override!r}")
    *parents, last = key.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    section[last] = parse_yaml(value, source=f"--set {override}")
