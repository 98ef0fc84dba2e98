"""One sampler replica: encode patients, and draw blocks of samples with the bundle's networks."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.diffusion.continuous_batching import ContinuousBatcher
from lesioncast.diffusion.model import SampleCondition
from lesioncast.diffusion.objective import NET2
from lesioncast.forecasting.encoding import MemberEncodings, PatientEncoder
from lesioncast.forecasting.members import draw_members
from lesioncast.forecasting.runtime import device_of, store_reader
from lesioncast.forecasting.sampling import ModelInput, SampleBatch
from serve.api.schemas import SamplerOverrides
from serve.inference.engine_thread import EngineFactory, EngineKey, EngineThread, OnStep
from serve.patients import PatientRef, store_for_patient
from serve.settings import ServiceSettings
from storage import open_store

ENCODING_CACHE_SIZE = 16  # patients


class SamplerWorker:
    """Draw blocks of samples of patients with the bundle's networks.

    On the CPU one thread draws: replicas are the parallelism, and a mask must not depend on the
    number of threads. `bundle` is the digest of the bundle.
    """

    def __init__(self, settings: ServiceSettings, on_step: OnStep) -> None:
        device = device_of(settings.gpus_per_sampler)
        if device == "cpu":
            torch.set_num_threads(1)
        bundle, store = load_bundle(settings.bundle, device=device), open_store(settings.store)
        check_compatible(bundle, store)
        self.bundle = bundle.digest
        self._config, self._models = bundle.config, [one.model for one in bundle.members]
        self._encode_arrays = PatientEncoder(bundle, device=device)
        self._store, self._artifacts = store, settings.artifacts
        self._encodings: OrderedDict[PatientRef, MemberEncodings] = OrderedDict()
        self._encoding_lock = asyncio.Lock()
        self._thread = EngineThread(self._engine_factory(device, settings.slots), on_step)

    def _engine_factory(self, device: str, slots: int) -> EngineFactory:
        models, spatial_shape = self._models, self._config.slab

        def make_engine(key: EngineKey) -> ContinuousBatcher[SampleCondition]:
            return models[key.member].batcher(
                key.sampler, spatial_shape=spatial_shape, device=torch.device(device), slots=slots
            )

        return make_engine

    @property
    def alive(self) -> bool:
        """Return False if nothing can be drawn any more."""
        return self._thread.alive

    async def draw(
        self,
        job_id: str,
        patient: PatientRef,
        arm: int,
        seeds: Sequence[int],
        overrides: SamplerOverrides,
    ) -> SampleBatch:
        """Draw a patient's samples under an arm. Jobs share the slots fairly."""
        encodings = await self._patient_encodings(patient)
        sampler = replace(self._config.sampler, **overrides.model_dump(exclude_none=True))
        draws = draw_members(self._models, encodings, arm, seeds)
        x = await self._thread.draw(job_id, draws, seeds, sampler)
        return await asyncio.to_thread(self._to_drawn_samples, x)

    async def _patient_encodings(self, patient: PatientRef) -> MemberEncodings:
        """Return the encodings of a patient, computed once for all arms and seeds.

        The lock makes calls that arrive together wait for the first one rather than repeat it.
        """
        async with self._encoding_lock:
            if patient not in self._encodings:
                self._encodings[patient] = await asyncio.to_thread(self._encode, patient)
            self._encodings.move_to_end(patient)
            while len(self._encodings) > ENCODING_CACHE_SIZE:
                self._encodings.popitem(last=False)
            return self._encodings[patient]

    def _encode(self, patient: PatientRef) -> MemberEncodings:
        store = store_for_patient(patient, self._store, self._artifacts)
        model_input = ModelInput(store.case(patient.subject).index, patient.sessions)
        arrays = store_reader(store, self._config.model)(model_input)
        return self._encode_arrays(arrays)

    def _to_drawn_samples(self, x: Sequence[Tensor]) -> SampleBatch:
        """Convert samples x [2, s, h, w] to packed NET2 masks and their lesions."""
        masks = np.stack([(sample[NET2] > 0).cpu().numpy() for sample in x])
        return SampleBatch.from_masks(masks, self._store.spec.spacing)
