"""Facts about the mounted bundle that clients may know."""

from dataclasses import dataclass

from lesioncast.bundle.bundle import BundleDescription
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.forecasting.runtime import supported_sessions
from lesioncast.imaging.channels import Sessions
from lesioncast.imaging.covariates import Covariate
from storage import VisitSchedule

MODEL_NAME = "lesioncast"


@dataclass(frozen=True)
class ModelInfo:
    """Facts about the mounted bundle.

    `condition` names the input channels. `covariates` are the covariates that the model takes.
    `sessions` lists the combinations of sessions whose images the model accepts; the first one is
    the default. `visits` holds the labels of the sessions that the bundle was trained on.
    """

    digest: str
    arms: tuple[str, ...]
    slab: tuple[int, int, int]
    condition: tuple[str, ...]
    covariates: tuple[Covariate, ...]
    sampler: SamplerConfig
    sessions: tuple[Sessions, ...]
    visits: VisitSchedule


def model_info(bundle: BundleDescription) -> ModelInfo:
    """Collect the facts about a bundle."""
    config = bundle.config
    return ModelInfo(
        digest=bundle.digest,
        arms=config.model.arms,
        slab=config.slab,
        condition=config.model.control.condition,
        covariates=config.model.covariates,
        sampler=config.sampler,
        sessions=supported_sessions(bundle),
        visits=config.visits,
    )
