"""Settings of the noise schedule, the training objective and the sampler."""

import math
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]

Solver = Literal["ancestral", "ddim", "dpmsolver++", "sde-dpmsolver++"]

BASE_LOG_ODDS = -6.0  # prior log odds of a lesion voxel; about 0.1 % of brain voxels are NET2


@dataclass(frozen=True)
class ScheduleConfig:
    """Settings of the noise schedule.

    A shift is 2 ln(d / resolution). The paper's 256-voxel slab takes d = 32 and d = 128.
    """

    #: Shift of the cosine schedule's logsnr near the data (t = 0).
    shift_data: float = 2 * math.log(32 / 256)
    #: Shift of the cosine schedule's logsnr near the noise (t = 1).
    shift_noise: float = 2 * math.log(128 / 256)
    #: Largest absolute logsnr before the shifts.
    logsnr_limit: float = 15.0


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the training loss, the same in both stages.

    With prediction `log_odds` the network predicts FLAIR as x, and NET2 as the log odds of a lesion
    without the voxel's own evidence. Bayes' rule adds that evidence in closed form.
    """

    #: Quantity that the network predicts.
    prediction: Literal["v", "eps", "x", "log_odds"] = "v"
    #: Factor on the squared error of x at each noise level: `min_snr` is min(SNR, gamma) (Hang et
    #: al. 2023), `v` is SNR + 1 (plain v-prediction), `x` is 1.
    weighting: Literal["min_snr", "v", "x"] = "min_snr"
    #: Largest SNR weight under `min_snr`.
    min_snr_gamma: float = 5.0
    #: Loss of NET2: squared error of x or, with prediction `log_odds`, cross entropy. Both have the
    #: same minimiser.
    mask_loss: Literal["squared", "cross_entropy"] = "squared"
    #: Log odds that prediction `log_odds` adds to the network's output.
    base_log_odds: float = BASE_LOG_ODDS
    #: Factor on the loss of lesion voxels in the NET2 channels (paper, section 3).
    lesion_weight: float = 10.0
    #: Factor on the loss of FLAIR.
    flair_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.lesion_weight < 1:
            raise ValueError(f"lesion_weight: expected 1 or more, got {self.lesion_weight}")
        if self.mask_loss == "cross_entropy" and self.prediction != "log_odds":
            raise ValueError(
                f"mask_loss: expected prediction log_odds for cross_entropy, got "
                f"{self.prediction}; set mask_loss to squared"
            )


@dataclass(frozen=True)
class SamplerConfig:
    """Settings of the sampler."""

    #: Solver of the reverse process.
    solver: Solver = "ancestral"
    #: Steps, each with one evaluation of the networks.
    num_steps: int = 256
    #: Quantity in which the steps are evenly spaced.
    spacing: Literal["t", "logsnr"] = "logsnr"
    #: Range of logsnr that the steps cover, cut to the range of the schedule. A range that starts
    #: above pure noise is preceded by one step from pure noise.
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    #: Noise of sde-dpmsolver++, from 0 (the ODE, dpmsolver++) to 1 (the reverse SDE).
    eta: float = 1.0
    #: Variance of the ancestral step, from 0 (the lower bound) to 1 (the upper bound) on a
    #: logarithmic scale (Nichol and Dhariwal 2021, equation 15).
    variance: float = 0.5
    #: Classifier-free guidance: 0 is unconditional, 1 conditional, and more exaggerates the
    #: condition: uncond + guidance * (cond - uncond). The literature's w is guidance - 1.
    guidance: float = 1.0
    #: Range of logsnr with guidance. Outside of it x_hat is conditional.
    guidance_interval: tuple[float, float] = (-20.0, 20.0)
    #: Factors by which samples move NET2's log odds away from the base map: one for all lesion load
    #: classes with lesions, or one for each. 1 is as trained, and more makes lesions more coherent.
    #: Models without a base map ignore them. Maps are computed without them.
    autoguidance: tuple[float, ...] = ()
    #: Share that maps in closed form keep of the networks' distance from the base map, in log odds:
    #: 0 is the base map, 1 the networks as trained. Models without a base map ignore it.
    map_weight: float = 1.0
    #: A sample of prediction `log_odds` ends once fewer lesion voxels than this are expected to
    #: differ between its mask so far and its mask after all steps; 0 takes all steps.
    undecided_voxels: float = 0.3
    #: Precision of the networks. z stays in float32.
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps: expected 1 or more, got {self.num_steps}")
        for name in ("eta", "variance", "map_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")
        if self.undecided_voxels < 0:
            raise ValueError(f"undecided_voxels: expected 0 or more, got {self.undecided_voxels}")
        if any(factor < 1 for factor in self.autoguidance):
            raise ValueError(
                f"autoguidance: expected factors of 1 or more, got {list(self.autoguidance)}"
            )
        for name, (low, high) in (
            ("logsnr_min, logsnr_max", (self.logsnr_min, self.logsnr_max)),
            ("guidance_interval", self.guidance_interval),
        ):
            if low >= high:
                raise ValueError(
                    f"{name}: expected a range that rises from noise to data, got {low} to {high}"
                )
