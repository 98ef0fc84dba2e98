"""The mounted bundle and store as the HTTP API needs them, without weights and without torch."""

from dataclasses import dataclass

from lesioncast.bundle.compatibility import check_compatible, supported_sessions
from lesioncast.bundle.description import BundleDescription, describe_bundle
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.errors import ForecastError
from lesioncast.imaging.channels import Sessions
from lesioncast.imaging.covariates import Covariate
from serve.settings import ServiceSettings
from storage import Store, VisitSchedule, open_store

MODEL_NAME = "lesioncast"


@dataclass(frozen=True)
class ModelInfo:
    """Facts about the mounted bundle that clients may know.

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


@dataclass(frozen=True)
class MountedModel:
    """The description of a bundle, a store that fits it, and the settings of the service."""

    bundle: BundleDescription
    store: Store
    settings: ServiceSettings


def mount_model(settings: ServiceSettings) -> MountedModel:
    """Open bundle and store without reading weights. Raises ForecastError if they do not fit."""
    bundle = describe_bundle(settings.bundle)
    return MountedModel(bundle, open_store_for(bundle, settings), settings)


def open_store_for(bundle: BundleDescription, settings: ServiceSettings) -> Store:
    """Open the store. Raises ForecastError if it does not fit the bundle or the setting `truth`."""
    store = open_store(settings.store)
    check_compatible(bundle, store)
    if settings.truth is not None and not store.table.trial.simulated:
        raise ForecastError(
            f"truth: expected the trial of a store of simulated subjects, got {settings.truth} "
            f"for {store.path}, whose subjects are not; leave it out"
        )
    return store
