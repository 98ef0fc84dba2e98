"""Settings of both networks as one model."""

from dataclasses import dataclass, field

from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
from lesioncast.diffusion.settings.process import ObjectiveConfig, ScheduleConfig
from lesioncast.imaging.covariates import Covariate


@dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the weights. It is stored as JSON beside them."""

    #: Names of the treatment arms, in the order of the arm table.
    arms: tuple[str, ...]
    unet: UNetConfig = field(default_factory=UNetConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    #: Clinical covariates that stage 2 is conditioned on.
    covariates: tuple[Covariate, ...] = ()

    def __post_init__(self) -> None:
        if len(self.arms) != self.unet.arms:
            raise ValueError(
                f"unet.arms: expected {len(self.arms)}, the number of named arms "
                f"({', '.join(self.arms)}), got {self.unet.arms}; set unet.arms to their number"
            )
        if self.unet.base_map and self.objective.prediction != "log_odds":
            raise ValueError(
                "objective.prediction: expected log_odds for networks that refine a base map, got "
                f"{self.objective.prediction}; set it to log_odds, or priors to load"
            )
