"""The prior of the lesion load learns what there is to know of cases whose law is known."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from skimage.measure import euler_number as skimage_euler_number

from lesioncast.diffusion.controlnet import euler_number, lesion_burden
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.imaging.covariates import Covariate
from lesioncast.training.lesion_load_prior import PriorTrainingData, fit_load_prior
from tests.support.training import SETTINGS

LATER = np.array([False, True])
AGE = (Covariate("age"),)


def patients(number: int, *, seed: int) -> PriorTrainingData:
    """Two channels; the load goes by the first one's number of lesions and by the arm."""
    random = torch.Generator().manual_seed(seed)
    arm = torch.randint(2, (number,), generator=random)
    burden = torch.rand(number, 2, 3, generator=random) * 2
    burden[:, :, 0] = 1
    chance = chances(burden, arm)
    load = (torch.rand(number, generator=random) < chance).long()
    return PriorTrainingData(burden, torch.zeros(number, 0), arm, load, 3.0 * load)


def chances(burden: torch.Tensor, arm: torch.Tensor) -> torch.Tensor:
    """P(load 1)."""
    return torch.sigmoid(3 * burden[:, 0, 2] - 2.5 - 2 * arm)


def alike(found: torch.Tensor, expected: torch.Tensor, *, within: float) -> bool:
    """Whether the mean distance of two probabilities is small."""
    return (found - expected).abs().mean().item() < within


def fitted(
    known: PriorTrainingData,
    *,
    covariates: tuple[Covariate, ...] = (),
    classes: int = 2,
    **rates: float,
) -> LesionLoadPrior:
    torch.manual_seed(0)
    prior = LesionLoadPrior(6, arms=3, classes=classes, covariates=covariates)
    none = dict.fromkeys(SETTINGS.dropout_rates, 0.0)
    fit_load_prior(prior, known, replace(SETTINGS, **{**none, **rates}), seed=0, later=LATER)
    return prior


@torch.no_grad()
def stated(prior: LesionLoadPrior, of: PriorTrainingData) -> torch.Tensor:
    """P(load 1)."""
    return prior(prior.patient_features(of.burden, of.covariates), of.arm).softmax(1)[:, 1]


def test_the_prior_learns_the_law_of_the_load() -> None:
    known, asked = patients(2000, seed=1), patients(500, seed=2)
    prior = fitted(known)
    assert alike(stated(prior, asked), chances(asked.burden, asked.arm), within=0.05)
    flat = torch.full((500,), known.load.float().mean().item())
    assert not alike(flat, chances(asked.burden, asked.arm), within=0.2)


def test_lesions_of_a_load_are_those_of_its_cases_and_of_the_load_below_where_it_has_none() -> None:
    known = patients(3, seed=1)
    known = replace(known, load=torch.tensor([0, 1, 1]), lesions=torch.tensor([0.0, 1.0, 3.0]))
    prior = fitted(known, classes=3)
    assert prior.lesions.tolist() == [0, 2, 2]
    expected = [0, np.log(8) / 2, np.log(8) / 2]
    np.testing.assert_allclose(prior.log_lesions, expected, rtol=1e-6)


def test_what_rows_lose_while_it_is_fitted_it_may_lack_later() -> None:
    """Without its images, a patient's chance is that of the arm; without the arm, of all."""
    known = patients(2000, seed=1)
    prior = fitted(known, arm_dropout=0.3, condition_dropout=0.3)
    active, arm = known.load.float(), known.arm
    empty = replace(known, burden=torch.zeros_like(known.burden))
    for which in (0, 1):
        found = stated(prior, empty)[arm == which].mean().item()
        assert found == pytest.approx(active[arm == which].mean().item(), abs=0.04)
    unknown = stated(prior, replace(empty, arm=torch.full_like(arm, 2)))
    assert unknown.mean().item() == pytest.approx(active.mean().item(), abs=0.04)


def test_later_channels_are_lost_at_their_own_rate() -> None:
    """The load goes by the later channel alone, so that without it the earlier one says nothing."""
    known = patients(2000, seed=1)
    known = replace(known, burden=known.burden.flip(1))
    early = replace(known, burden=known.burden * torch.tensor([1.0, 0.0])[:, None])
    rate = known.load.float()[known.arm == 0].mean().item()
    assert stated(fitted(known), early)[known.arm == 0].mean().item() != pytest.approx(
        rate, abs=0.1
    )
    found = stated(fitted(known, session_dropout=0.3), early)[known.arm == 0].mean().item()
    assert found == pytest.approx(rate, abs=0.05)


def test_a_covariate_is_learned_and_may_be_absent() -> None:
    known = patients(2000, seed=1)
    age = torch.randn(2000, 1, generator=torch.Generator().manual_seed(3))
    known = replace(known, covariates=age, load=(age[:, 0] > 0).long())
    prior = fitted(known, covariates=AGE, covariate_dropout=0.3)
    assert alike(stated(prior, known), known.load.float(), within=0.1)
    absent = stated(prior, replace(known, covariates=torch.full_like(age, torch.nan)))
    assert absent.mean().item() == pytest.approx(known.load.float().mean().item(), abs=0.05)


def test_the_same_seed_fits_the_same_prior() -> None:
    one, other = (fitted(patients(200, seed=1), arm_dropout=0.1).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_fewer_cases_the_smaller_the_weights() -> None:
    """The same cases ten times over say the same and are trusted more."""
    few = patients(100, seed=1)
    many = PriorTrainingData(
        *(torch.cat([each] * 10) for each in (getattr(few, f.name) for f in fields(few)))
    )
    sizes = [
        sum(each.square().sum().item() for each in fitted(known).parameters())
        for known in (few, many)
    ]
    assert sizes[0] < 0.8 * sizes[1]


def test_a_balanced_stage_does_not_change_how_often_loads_occur() -> None:
    natural, balanced = (fitted(patients(200, seed=1), balanced=each) for each in (False, True))
    found = balanced.state_dict()
    assert all(torch.equal(each, found[name]) for name, each in natural.state_dict().items())


def test_the_euler_number_is_that_of_scikit_image() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (
        torch.rand(4, 3, 6, 9, 8, generator=generator)
        < torch.linspace(0, 0.5, 3)[:, None, None, None]
    )
    expected = [
        [skimage_euler_number(each.numpy(), connectivity=3) for each in few] for few in masks
    ]
    assert euler_number(masks).tolist() == expected


def test_the_burden_says_how_much_and_how_many_of_masks_and_nothing_of_what_is_absent() -> None:
    condition = -torch.ones(1, 3, 4, 8, 8)
    condition[0, 1, 0, :2, :2] = 1  # one lesion of 4 voxels
    condition[0, 1, 3, 5:, 5:] = 1  # and one of 9, at the border
    condition[0, 2] = 0
    burden = lesion_burden(condition, [1, 2])
    share = np.log10(13 / 256 + 1e-5) + 3
    np.testing.assert_allclose(burden[0, 1], [1, share, np.log(3)], rtol=1e-5)
    assert burden[0, 0, 2] == 0  # not a mask
    assert burden[0, 2].tolist() == [0, 0, 0]
