"""Continuous batching: a sample does not depend on its batch, and slots are shared fairly."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from lesioncast.diffusion.continuous_batching import (
    ContinuousBatcher,
    ReverseProcess,
    SampleRequest,
    run_until_idle,
)
from lesioncast.diffusion.model import LesionDiffusion, SampleCondition
from lesioncast.diffusion.objective import NET2, Denoiser
from lesioncast.diffusion.settings.process import SamplerConfig, ScheduleConfig
from lesioncast.diffusion.solvers import (
    initial_state,
    seeded_generators,
    seeded_noise,
    solver_coefficients,
    solver_step,
)
from tests.diffusion.test_model import case, demo_model, tiny_model

SAMPLER = SamplerConfig(
    solver="sde-dpmsolver++", num_steps=3, guidance=1.5, guidance_interval=(-20, 0.0)
)


CANCELLED = 2  # the patient whose samples are cancelled


def batcher_of(
    model: LesionDiffusion, condition: torch.Tensor
) -> ContinuousBatcher[SampleCondition]:
    """Return a batcher of a model for the shape of `condition`."""
    return model.batcher(SAMPLER, spatial_shape=condition.shape[2:], device=condition.device)


def record_passes(module: nn.Module) -> list[int]:
    """Return a list that receives the number of rows of each forward pass of a module."""
    rows: list[int] = []
    module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    return rows


def test_sample_has_the_same_bits_in_any_batch() -> None:
    """Samples of other patients and arms enter and are cancelled meanwhile, at the demo's size."""
    model, generator = demo_model(), torch.Generator().manual_seed(1)
    condition = torch.randn(3, 7, 15, 64, 56, generator=generator)
    batcher = batcher_of(model, condition)
    patients = [model.encode_patient(images, None, SAMPLER) for images in condition]

    def requests(name: str, patient: int, seeds: range) -> list[SampleRequest[SampleCondition]]:
        return [
            SampleRequest(name, (patient, arm, seed), sample_condition, seed)
            for arm in (0, 4)
            for seed, sample_condition in zip(
                seeds, model.sample_conditions(patients[patient], arm, seeds), strict=True
            )
        ]

    batcher.add(requests("first", 0, range(2)))
    finished = batcher.step()
    batcher.add(requests("second", 1, range(5)) + requests("cancelled", CANCELLED, range(5)))
    finished += batcher.step()
    batcher.cancel(lambda sample: sample.request == "cancelled")
    while batcher.busy:
        finished += batcher.step()
    samples = {sample.name: x for sample, x in finished}
    assert len([name for name in samples if name[0] != CANCELLED]) == 4 + 10
    assert len(samples) < 4 + 10 + 10  # samples without lesions ended before the cancellation
    for patient, arm, seed in ((0, 4, 1), (1, 0, 0), (1, 4, 4)):
        alone = model.sample(condition[patient : patient + 1], torch.tensor([arm]), [seed], SAMPLER)
        assert torch.equal(samples[patient, arm, seed], alone[0])


def counting_batcher(
    slots: int = 4,
    *,
    is_decided: Callable[[torch.Tensor], torch.Tensor] | None = None,
    known_sample: Callable[[float], torch.Tensor | None] = lambda _: None,
) -> tuple[ContinuousBatcher[float], list[list[float]]]:
    """Return a batcher whose x_hat is the condition, and a list of the conditions of each batch."""
    batches: list[list[float]] = []

    def make_denoiser(conditions: Sequence[float]) -> Denoiser:
        batches.append(list(conditions))
        return lambda z, logsnr: torch.tensor(conditions)[:, None].expand_as(z)

    process = ReverseProcess(
        make_denoiser,
        shape=(2,),
        schedule=ScheduleConfig(0, 0),
        sampler=SamplerConfig(solver="ddim", num_steps=5),
        is_decided=is_decided,
        known_sample=known_sample,
    )
    return ContinuousBatcher(process, slots=slots), batches


def test_small_request_gets_slots_as_soon_as_they_are_free() -> None:
    batcher, _ = counting_batcher()
    batcher.add(SampleRequest("large", row, 0.25, row) for row in range(100))
    batcher.step()
    batcher.add(SampleRequest("small", row, 0.5, row) for row in range(2))
    names = [sample.request for _ in range(10) for sample, _ in batcher.step()]
    assert names.count("small") == 2
    assert batcher.running + batcher.waiting == 100 - names.count("large")


def test_requests_share_the_slots_evenly() -> None:
    batcher, batches = counting_batcher()
    for request, value in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4)):
        batcher.add(SampleRequest(request, row, value, row) for row in range(3))
    while batcher.busy:
        batcher.step()
    assert [sorted(batch) for batch in batches] == [[0.1, 0.2, 0.3, 0.4]] * 3


def test_cancelled_request_frees_its_slots_within_a_step() -> None:
    batcher, batches = counting_batcher()
    batcher.add(SampleRequest("cancelled", row, 0.1, row) for row in range(6))
    batcher.step()
    batcher.cancel(lambda sample: sample.request == "cancelled")
    assert not batcher.busy
    batcher.add([SampleRequest("next", 0, 0.7, 0)])
    ((_, x),) = [finished for _ in range(5) for finished in batcher.step()]
    assert batches[-1] == [0.7]
    assert x.tolist() == pytest.approx([0.7, 0.7])


def test_decided_sample_leaves_its_slot() -> None:
    batcher, _ = counting_batcher(slots=2, is_decided=lambda x_hat: x_hat[:, 0] > 0.9)
    batcher.add([SampleRequest("a", "sure", 1.0, 0), SampleRequest("a", "unsure", 0.5, 1)])
    assert [sample.name for sample, _ in batcher.step()] == ["sure"]
    assert batcher.running == 1


def test_patient_is_encoded_once_for_all_arms_and_seeds() -> None:
    model, (condition, _, _) = tiny_model(), case(1)
    batcher = batcher_of(model, condition)
    passes = record_passes(model.control.hint)
    patient = model.encode_patient(condition[0], None, SAMPLER)
    run_until_idle(
        batcher, [SampleCondition(patient, arm) for arm in (0, 1) for _ in range(6)], range(12)
    )
    assert len(passes) == 1


def test_consecutive_rows_of_one_patient_share_an_encoding() -> None:
    model, (condition, _, _) = tiny_model(), case(2)
    passes = record_passes(model.control.hint)
    model.sample(condition[[0, 0, 1, 1, 0]], torch.tensor([0, 1, 0, 0, 1]), range(5), SAMPLER)
    assert len(passes) == 3 + 1  # one more for guidance, without images


def test_sample_that_needs_no_network_takes_no_slot() -> None:
    batcher, batches = counting_batcher(
        slots=2, known_sample=lambda value: torch.full((2,), value) if value < 0 else None
    )
    batcher.add(SampleRequest("a", value, value, 0) for value in (-0.5, 0.1, -0.25, 0.2, 0.3))
    finished = batcher.step()
    samples = [(sample.name, x[0].item()) for sample, x in finished]
    assert samples == [(-0.5, -0.5), (-0.25, -0.25)]
    assert batches == [pytest.approx([0.1, 0.2])]


def test_conditional_and_unconditional_predictions_share_a_forward_pass() -> None:
    """Two samples and their two unconditional predictions take one pass of eight rows per step."""
    model, (condition, _, _) = tiny_model(), case(1)
    passes = record_passes(model.unet)
    patient = model.encode_patient(condition[0], None, SAMPLER)
    batcher = batcher_of(model, condition)
    batcher.add(SampleRequest(0, arm, SampleCondition(patient, arm), 5) for arm in (0, 1))
    batcher.step()
    assert passes == [8]


@torch.no_grad()
def test_samples_are_guided_inside_the_interval() -> None:
    """Compare with solver steps taken one by one with the guided denoiser."""
    model, (condition, arm, _) = tiny_model(), case(2)
    sampler = replace(SAMPLER, num_steps=5, guidance=3.0, logsnr_min=-6, logsnr_max=6)
    x = model.sample(condition, arm, [3, 4], sampler)
    denoise = model.denoiser(
        condition, arm, guidance=sampler.guidance, interval=sampler.guidance_interval
    )
    steps = solver_coefficients(model.config.schedule, sampler)
    generators, shape = seeded_generators([3, 4]), x.shape[1:]
    state = initial_state(seeded_noise(generators, shape))
    for _ in range(sampler.num_steps):
        state = solver_step(denoise, state, seeded_noise(generators, shape), steps=steps)
    assert torch.allclose(x, state.z, atol=1e-5)
    for other in (replace(sampler, guidance=1.0), replace(sampler, guidance_interval=(-20, 20))):
        assert not torch.allclose(model.sample(condition, arm, [3, 4], other), x, atol=1e-3)


def test_guidance_does_not_change_which_samples_have_lesions() -> None:
    """The lesion load decides that, and guidance acts only on the placement of lesions."""
    model, generator = demo_model(), torch.Generator().manual_seed(1)
    condition = torch.randn(8, 7, 15, 64, 56, generator=generator)
    conditional, guided = (
        model.sample(condition, torch.arange(8) % 6, range(8), replace(SAMPLER, guidance=guidance))
        for guidance in (1.0, 3.0)
    )
    some = [(x[:, NET2] > 0).flatten(1).any(1) for x in (conditional, guided)]
    assert torch.equal(*some)
    assert 0 < some[0].sum() < 8
    assert not torch.equal(conditional, guided)
