"""The engine: what a sample is does not depend on its slot mates, and slots are shared fairly."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lesioncast.diffusion.continuous_batching import (
    ContinuousBatcher,
    SampleRequest,
    run_until_idle,
)
from lesioncast.diffusion.model import LesionDiffusion, SampleCondition
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.schedule import ScheduleConfig
from lesioncast.diffusion.solvers import (
    SamplerConfig,
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


DOOMED = 2  # the patient whose samples are cancelled


def engine_of(
    model: LesionDiffusion, condition: torch.Tensor
) -> ContinuousBatcher[SampleCondition]:
    return model.engine(SAMPLER, spatial_shape=condition.shape[2:], device=condition.device)


def passes_of(module: nn.Module) -> list[int]:
    """The rows of each forward pass of a module from now on."""
    rows: list[int] = []
    module.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    return rows


def test_a_sample_is_that_of_draw_x_to_the_last_bit_whatever_its_slot_mates() -> None:
    """At the demo's size: mates of other patients and arms enter and are cancelled on the way."""
    model, generator = demo_model(), torch.Generator().manual_seed(1)
    condition = torch.randn(3, 7, 15, 64, 56, generator=generator)
    engine = engine_of(model, condition)
    hints = [model.encode_patient(each, None, SAMPLER) for each in condition]

    def wanted(request: str, patient: int, seeds: range) -> list[SampleRequest[SampleCondition]]:
        return [
            SampleRequest(request, (patient, arm, seed), told, seed)
            for arm in (0, 4)
            for seed, told in zip(
                seeds, model.sample_conditions(hints[patient], arm, seeds), strict=True
            )
        ]

    engine.add(wanted("first", 0, range(2)))
    found = engine.step()
    engine.add(wanted("second", 1, range(5)) + wanted("doomed", DOOMED, range(5)))
    found += engine.step()
    engine.cancel(lambda each: each.request == "doomed")
    while engine.busy:
        found += engine.step()
    drawn = {each.name: x for each, x in found}
    assert len([name for name in drawn if name[0] != DOOMED]) == 4 + 10
    assert len(drawn) < 4 + 10 + 10  # a few had no lesions and had ended before
    for patient, arm, seed in ((0, 4, 1), (1, 0, 0), (1, 4, 4)):
        alone = model.sample(condition[patient : patient + 1], torch.tensor([arm]), [seed], SAMPLER)
        assert torch.equal(drawn[patient, arm, seed], alone[0])


def counting_engine(
    slots: int = 4, steps: int = 5
) -> tuple[ContinuousBatcher[float], list[list[float]]]:
    """Every x_hat is what the sample is told; `shared` lists who shared each batch."""
    shared: list[list[float]] = []

    def denoiser(told):  # type: ignore[no-untyped-def]
        shared.append(list(told))
        return lambda z, logsnr: torch.tensor(told)[:, None].expand_as(z)

    sampler = SamplerConfig(solver="ddim", num_steps=steps)
    return ContinuousBatcher(
        denoiser, shape=(2,), schedule=ScheduleConfig(0, 0), sampler=sampler, slots=slots
    ), shared


def test_a_small_request_gets_slots_as_soon_as_they_are_free() -> None:
    engine, _ = counting_engine()
    engine.add(SampleRequest("large", row, 0.25, row) for row in range(100))
    engine.step()
    engine.add(SampleRequest("small", row, 0.5, row) for row in range(2))
    names = [each.request for _ in range(10) for each, _ in engine.step()]
    assert names.count("small") == 2
    assert engine.running + engine.waiting == 100 - names.count("large")


def test_requests_share_the_slots_evenly() -> None:
    engine, shared = counting_engine()
    for request, told in (("a", 0.1), ("b", 0.2), ("c", 0.3), ("d", 0.4)):
        engine.add(SampleRequest(request, row, told, row) for row in range(3))
    while engine.busy:
        engine.step()
    assert [sorted(each) for each in shared] == [[0.1, 0.2, 0.3, 0.4]] * 3


def test_a_cancelled_request_frees_its_slots_within_a_step() -> None:
    engine, shared = counting_engine()
    engine.add(SampleRequest("doomed", row, 0.1, row) for row in range(6))
    engine.step()
    engine.cancel(lambda each: each.request == "doomed")
    assert not engine.busy
    engine.add([SampleRequest("next", 0, 0.7, 0)])
    (found,) = [each for _ in range(5) for each in engine.step()]
    assert shared[-1] == [0.7]
    assert found[1].tolist() == pytest.approx([0.7, 0.7])


def test_a_sample_that_is_settled_leaves_its_slot() -> None:
    engine, _ = counting_engine(slots=2)
    engine._settled = lambda x_hat: x_hat[:, 0] > 0.9
    engine.add([SampleRequest("a", "sure", 1.0, 0), SampleRequest("a", "unsure", 0.5, 1)])
    assert [each.name for each, _ in engine.step()] == ["sure"]
    assert engine.running == 1


def test_a_patients_hint_is_computed_once_for_all_arms_and_seeds() -> None:
    model, (condition, _, _) = tiny_model(), case(1)
    engine = engine_of(model, condition)
    passes = passes_of(model.control.hint)
    hint = model.encode_patient(condition[0], None, SAMPLER)
    run_until_idle(
        engine, [SampleCondition(hint, arm) for arm in (0, 1) for _ in range(6)], range(12)
    )
    assert len(passes) == 1


def test_rows_of_one_patient_that_follow_each_other_share_a_hint() -> None:
    model, (condition, _, _) = tiny_model(), case(2)
    passes = passes_of(model.control.hint)
    model.sample(condition[[0, 0, 1, 1, 0]], torch.tensor([0, 1, 0, 0, 1]), range(5), SAMPLER)
    assert len(passes) == 3 + 1  # and that of no patient, for guidance


def test_a_sample_that_is_known_takes_no_slot() -> None:
    engine, shared = counting_engine(slots=2)
    engine._known = lambda told: torch.full((2,), told) if told < 0 else None
    engine.add(SampleRequest("a", told, told, 0) for told in (-0.5, 0.1, -0.25, 0.2, 0.3))
    found = engine.step()
    assert [(each.name, x[0].item()) for each, x in found] == [(-0.5, -0.5), (-0.25, -0.25)]
    assert shared == [pytest.approx([0.1, 0.2])]


def test_guided_branches_share_forward_passes() -> None:
    """Two samples and their two unconditional branches need one pass of eight rows a step."""
    model, (condition, _, _) = tiny_model(), case(1)
    passes = passes_of(model.unet)
    hint = model.encode_patient(condition[0], None, SAMPLER)
    engine = engine_of(model, condition)
    engine.add(SampleRequest(0, arm, SampleCondition(hint, arm), 5) for arm in (0, 1))
    engine.step()
    assert passes == [8]


@torch.no_grad()
def test_what_is_drawn_is_guided_inside_the_interval() -> None:
    """Against the steps of `sampler.py` taken one by one with the guided denoiser."""
    model, (condition, arm, _) = tiny_model(), case(2)
    sampler = replace(SAMPLER, num_steps=5, guidance=3.0, logsnr_min=-6, logsnr_max=6)
    drawn = model.sample(condition, arm, [3, 4], sampler)
    denoise = model.denoiser(
        condition, arm, guidance=sampler.guidance, interval=sampler.guidance_interval
    )
    steps = solver_coefficients(model.config.schedule, sampler)
    generators, shape = seeded_generators([3, 4]), drawn.shape[1:]
    state = initial_state(seeded_noise(generators, shape))
    for _ in range(sampler.num_steps):
        state = solver_step(denoise, state, seeded_noise(generators, shape), steps=steps)
    assert torch.allclose(drawn, state.z, atol=1e-5)
    for other in (replace(sampler, guidance=1.0), replace(sampler, guidance_interval=(-20, 20))):
        assert not torch.allclose(model.sample(condition, arm, [3, 4], other), drawn, atol=1e-3)


def test_guidance_does_not_change_who_has_lesions() -> None:
    """That is the load's to say, and guidance acts on the networks that place them."""
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
