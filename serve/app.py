"""The service on Ray Serve.

    serve run serve.app:build bundle=out/demo/bundle store=out/demo/store.zarr demo=true
    serve run serve/service.yaml

HTTP replicas (`Ingress`) store requests in the database, one forecast worker runs the jobs, and
sampler replicas draw. Ray Serve restarts whichever dies, and it continues from the database.

Every process of the service imports this module. Only the worker and the samplers need torch, which
takes seconds to import, so that they import their parts themselves.
"""

import asyncio
import os
from typing import Any, NamedTuple

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from lesioncast.forecasting.adaptive import SampleBlock
from lesioncast.forecasting.sampling import SampleBatch
from serve.api.app import create_app
from serve.api.dependencies import create_context
from serve.api.schemas import SamplerOverrides
from serve.db.models import ForecastJob
from serve.db.open import open_repository
from serve.inference.reports import EngineStoppedError
from serve.log import JSON_LOGGING_CONFIG
from serve.metrics import EngineMetrics, ForecastMetrics, RequestMetrics
from serve.model_info import mount_model
from serve.patients import PatientRef, patient_for_job
from serve.settings import ServiceSettings
from serve.worker.retry import OtherBundleError, SamplersUnavailableError
from storage import open_store
from storage.private_files import private_folder

UNAVAILABLE_ERRORS = (
    RayActorError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    BackPressureError,
)
MAX_ATTEMPTS, INITIAL_BACKOFF_S, MAX_BACKOFF_S = 20, 0.5, 10.0
READY_TIMEOUT_S = 5.0
# Above 0 CPUs: Ray puts actors of 0 CPUs on a head that has none, which should only coordinate.
LIGHTWEIGHT_ACTOR_OPTIONS = {"num_cpus": 0.1}
# Above any peak: the engine's slots bound how many calls really run at a time.
MAX_ONGOING_DRAWS = 4096


class BundleSamples(NamedTuple):
    """Samples, and the digest of the bundle that drew them."""

    bundle: str
    samples: SampleBatch


@ray_serve.deployment(
    max_ongoing_requests=MAX_ONGOING_DRAWS,
    health_check_period_s=5,
    logging_config=JSON_LOGGING_CONFIG,
)
class SamplerDeployment:
    """Ray Serve deployment of `serve.inference.sampler.SamplerWorker`."""

    def __init__(self, settings: ServiceSettings) -> None:
        from serve.inference.sampler import SamplerWorker  # imports torch

        metrics = EngineMetrics(open_store(settings.store).spec.arms)
        self._sampler = SamplerWorker(settings, metrics.on_step)

    async def draw(
        self,
        job_id: str,
        patient: PatientRef,
        arm: int,
        seeds: tuple[int, ...],
        overrides: SamplerOverrides,
    ) -> BundleSamples:
        """Draw a patient's samples under an arm; see `SamplerWorker.draw`."""
        drawn = await self._sampler.draw(job_id, patient, arm, seeds, overrides)
        return BundleSamples(self._sampler.bundle, drawn)

    async def ready(self) -> bool:
        """Return True if the replica can draw."""
        return self._sampler.alive

    def check_health(self) -> None:
        """Raise EngineStoppedError if the engine has stopped; Serve then replaces the replica."""
        if not self._sampler.alive:
            raise EngineStoppedError("the engine has stopped")


@ray_serve.deployment(num_replicas=1, max_ongoing_requests=1000, logging_config=JSON_LOGGING_CONFIG)
class ForecastWorkerDeployment:
    """Ray Serve deployment of `serve.worker.worker.ForecastWorker`, with a single replica.

    Two workers would draw each job twice.
    """

    def __init__(self, settings: ServiceSettings, sampler: DeploymentHandle[Any]) -> None:
        # They import torch.
        from serve.worker.loaded_model import load_model
        from serve.worker.worker import ForecastWorker

        loaded = load_model(settings)
        arms = loaded.store.spec.arms

        async def draw(job: ForecastJob, block: SampleBlock) -> SampleBatch:
            arm, overrides = arms.index(block.arm), job.request.sampler
            arguments = job.id, patient_for_job(job), arm, block.seeds, overrides
            return await draw_with_retries(sampler, *arguments, bundle=loaded.bundle.digest)

        jobs = open_repository(settings)
        self._worker = ForecastWorker(jobs, loaded, draw, ForecastMetrics())
        self._sampler = sampler
        self._task = asyncio.get_running_loop().create_task(self._worker.run())

    async def wake(self) -> None:
        """Look at the jobs now rather than at the next poll."""
        self._worker.wake()

    async def ready(self) -> bool:
        """Return True if the worker runs and a sampler is ready."""
        return not self._task.done() and await is_ready(self._sampler)

    def check_health(self) -> None:
        """Raise RuntimeError if the worker has stopped; Serve then replaces the replica."""
        if self._task.done():
            raise RuntimeError("the forecast worker has stopped")


async def is_ready(replicas: DeploymentHandle[Any]) -> bool:
    """Return True if a replica answers within `READY_TIMEOUT_S` that it is ready."""
    try:
        return bool(await asyncio.wait_for(replicas.ready.remote(), READY_TIMEOUT_S))
    except (TimeoutError, *UNAVAILABLE_ERRORS):
        return False


async def draw_with_retries(
    sampler: DeploymentHandle[Any], *arguments: Any, bundle: str
) -> SampleBatch:
    """Call a sampler, retrying while replicas are unavailable or hold another bundle.

    Retrying is safe because a seed determines its sample. Ray Serve itself does not repeat a call
    whose replica died. Raises SamplersUnavailableError after `MAX_ATTEMPTS` attempts. `bundle` is
    the digest of the bundle under which the samples are stored.
    """
    for attempt in range(MAX_ATTEMPTS):
        response = sampler.draw.remote(*arguments)
        try:
            drawn: BundleSamples = await response
            # A replica that started after the bundle was replaced holds the new one.
            if drawn.bundle == bundle:
                return drawn.samples
            if attempt == MAX_ATTEMPTS - 1:
                raise OtherBundleError(
                    f"expected samples of bundle {bundle[:12]}, got those of {drawn.bundle[:12]}; "
                    "restart the service, so that all replicas load one bundle"
                )
        except asyncio.CancelledError:
            # Awaiting a response does not cancel the call when the awaiting task is cancelled.
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except EngineStoppedError:
            # This very draw may be what stops engines, so the last error is that of the job.
            if attempt == MAX_ATTEMPTS - 1:
                raise
        except UNAVAILABLE_ERRORS as error:
            if attempt == MAX_ATTEMPTS - 1:
                raise SamplersUnavailableError(
                    f"expected a sampler to answer, got none in {MAX_ATTEMPTS} attempts"
                ) from error
        await asyncio.sleep(min(INITIAL_BACKOFF_S * 2**attempt, MAX_BACKOFF_S))
    raise AssertionError("unreachable")


@ray_serve.deployment(max_ongoing_requests=1000, logging_config=JSON_LOGGING_CONFIG)
@ray_serve.ingress()
class Ingress:
    """The HTTP API. It keeps no state of its own, so that any replica can answer any request."""

    def __init__(self, settings: ServiceSettings, worker: DeploymentHandle[Any]) -> None:
        self._settings, self._worker = settings, worker

    def __serve_build_asgi_app__(self) -> FastAPI:  # noqa: N807, the name that Ray Serve calls
        worker = self._worker

        async def wake() -> None:
            worker.wake.remote()  # not awaited: a worker that is away polls when it is back

        async def ready() -> bool:
            return await is_ready(worker)

        mounted = mount_model(self._settings)
        context = create_context(mounted, wake=wake, ready=ready, observer=RequestMetrics())
        return create_app(context)


def as_deployment(decorated: Any) -> ray_serve.Deployment:
    """Return a decorated class as the deployment that it is; type checkers still see the class."""
    deployment: ray_serve.Deployment = decorated
    return deployment


def build(args: ServiceSettings) -> ray_serve.Application:
    """Build the application from its settings.

    Raises ValueError in demo mode behind HAProxy, from which every client seems to be local.
    """
    if args.demo and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise ValueError(
            "demo: expected Serve's own proxy, got RAY_SERVE_ENABLE_HA_PROXY=1, behind which every "
            "client looks local; start it with keys=FILE"
        )
    settings = args.absolute()
    private_folder(settings.artifacts.resolve())
    sampler = (
        as_deployment(SamplerDeployment)
        .options(
            ray_actor_options={
                "num_cpus": settings.cpus_per_sampler,
                "num_gpus": settings.gpus_per_sampler,
            },
            autoscaling_config={
                "min_replicas": settings.min_samplers,
                "max_replicas": settings.max_samplers,
                "target_ongoing_requests": settings.target_ongoing_requests,
            },
        )
        .bind(settings)
    )
    worker = (
        as_deployment(ForecastWorkerDeployment)
        .options(ray_actor_options=LIGHTWEIGHT_ACTOR_OPTIONS)
        .bind(settings, sampler)
    )
    return (
        as_deployment(Ingress)
        .options(
            ray_actor_options=LIGHTWEIGHT_ACTOR_OPTIONS, num_replicas=settings.ingress_replicas
        )
        .bind(settings, worker)
    )
