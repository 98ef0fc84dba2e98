"""The lesion load prior recovers a data distribution, and the lesion burden is correct."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from skimage.measure import euler_number as skimage_euler_number

from lesioncast.diffusion.controlnet import euler_number, lesion_burden
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.imaging.covariates import Covariate
from lesioncast.priors.flair_reader.reader import NUMBERS, FlairReader
from lesioncast.priors.input_patterns import PATTERNS, channels_of_pattern
from lesioncast.training.lesion_load_prior.data import PriorTrainingData
from lesioncast.training.lesion_load_prior.dropout import PriorDropout, drop_inputs, lost_types
from lesioncast.training.lesion_load_prior.fit import fit_lesion_load_prior
from lesioncast.training.settings import DropoutRates
from tests.support.training import SETTINGS

CHANNELS = ("w000/t2", "w048/t2")
NO_DROPOUT = DropoutRates()
AGE = (Covariate("age"),)


def patients(number: int, *, seed: int) -> PriorTrainingData:
    """Return cases whose lesion load depends on the burden of the first channel and on the arm."""
    random = torch.Generator().manual_seed(seed)
    arm = torch.randint(2, (number,), generator=random)
    burden = torch.rand(number, 2, 3, generator=random) * 2
    burden[:, :, 0] = 1
    load = (torch.rand(number, generator=random) < true_probability(burden, arm)).long()
    return PriorTrainingData(
        burden, torch.zeros(number, 0), arm, load, 3.0 * load, torch.zeros(number, 1, 0)
    )


def true_probability(burden: torch.Tensor, arm: torch.Tensor) -> torch.Tensor:
    """Return P(lesion load class 1)."""
    return torch.sigmoid(3 * burden[:, 0, 2] - 2.5 - 2 * arm)


def alike(actual: torch.Tensor, expected: torch.Tensor, *, within: float) -> bool:
    """Return True if the mean absolute difference is below `within`."""
    return (actual - expected).abs().mean().item() < within


def fitted(
    data: PriorTrainingData,
    rates: DropoutRates = NO_DROPOUT,
    *,
    covariates: tuple[Covariate, ...] = (),
    classes: int = 2,
) -> LesionLoadPrior:
    """Return a prior that is fitted to `data`."""
    torch.manual_seed(0)
    prior = LesionLoadPrior(CHANNELS, arms=3, classes=classes, covariates=covariates)
    independent = PriorDropout(rates, gadolinium=0, t2_and_gadolinium=0, masks=0)
    fit_lesion_load_prior(prior, data, independent, seed=0)
    return prior


@torch.no_grad()
def predicted(prior: LesionLoadPrior, data: PriorTrainingData) -> torch.Tensor:
    """Return P(lesion load class 1) of each case."""
    features = prior.patient_features(data.burden, data.covariates)
    return prior(features, data.arm).softmax(1)[:, 1]


def test_prior_recovers_the_distribution_of_the_lesion_load() -> None:
    train, test = patients(2000, seed=1), patients(500, seed=2)
    expected = true_probability(test.burden, test.arm)
    assert alike(predicted(fitted(train), test), expected, within=0.05)
    flat = torch.full((500,), train.lesion_load.float().mean().item())
    assert not alike(flat, expected, within=0.2)


def mean_by_arm(prior: LesionLoadPrior, data: PriorTrainingData) -> list[float]:
    """Return the mean P(lesion load class 1) of the cases of each arm."""
    return [predicted(prior, data)[data.arm == arm].mean().item() for arm in (0, 1)]


def observed_by_arm(data: PriorTrainingData) -> list[float]:
    return [data.lesion_load[data.arm == arm].float().mean().item() for arm in (0, 1)]


def at_baseline(data: PriorTrainingData) -> PriorTrainingData:
    """Return the cases without the second channel, which comes after baseline."""
    return replace(data, burden=data.burden * torch.tensor([1.0, 0.0])[:, None])


def test_mean_probability_of_each_arm_is_its_observed_share_for_each_pattern_of_images() -> None:
    data = patients(300, seed=1)
    prior = fitted(data, DropoutRates(arm=0.1, session=0.25))
    for shown in (data, at_baseline(data), replace(data, burden=torch.zeros_like(data.burden))):
        assert mean_by_arm(prior, shown) == pytest.approx(observed_by_arm(data), abs=1e-4)
        unknown = replace(shown, arm=torch.full_like(data.arm, 2))
        share = data.lesion_load.float().mean().item()
        assert predicted(prior, unknown).mean().item() == pytest.approx(share, abs=1e-4)


def test_offset_of_an_arm_changes_no_order_within_the_arm() -> None:
    data = patients(300, seed=1)
    prior = fitted(data)
    patterns = prior.pattern(prior.patient_features(data.burden, data.covariates)).unique()
    assert prior.arm_offset[patterns, :2].abs().min() > 0
    calibrated = predicted(prior, data)[data.arm == 1]
    prior.arm_offset.zero_()
    raw = predicted(prior, data)[data.arm == 1]
    assert torch.equal(calibrated.argsort(), raw.argsort())
    assert not torch.allclose(calibrated, raw)


def test_offset_corrects_the_means_of_other_cases() -> None:
    """A prior that never missed later images is wrong without them, under either arm."""
    train, test = patients(2000, seed=1), patients(2000, seed=2)
    train, test = (replace(data, burden=data.burden.flip(1)) for data in (train, test))
    prior, observed = fitted(train), np.array(observed_by_arm(test))
    assert mean_by_arm(prior, at_baseline(test)) == pytest.approx(observed, abs=0.04)
    prior.arm_offset.zero_()
    assert (np.abs(mean_by_arm(prior, at_baseline(test)) - observed) > 0.1).all()


def test_offset_of_an_arm_whose_cases_are_all_active_is_finite_and_of_one_without_cases_is_0() -> (
    None
):
    data = patients(40, seed=1)
    data = replace(data, lesion_load=torch.ones_like(data.arm), arm=torch.zeros_like(data.arm))
    prior = fitted(data)
    assert mean_by_arm(prior, data)[0] == pytest.approx(39.5 / 40, abs=1e-4)
    assert (prior.arm_offset[:, 1] == 0).all()


def counted_patients(number: int, *, seed: int) -> PriorTrainingData:
    """Return cases of loads 0, 1 and 2 with 0, 1 and 9 lesions; arm 1 has more of load 2."""
    data = patients(number, seed=seed)
    large = torch.rand(number, generator=torch.Generator().manual_seed(9)) < 0.2 + 0.5 * data.arm
    load = data.lesion_load * (1 + large.long())
    return replace(data, lesion_load=load, lesions=torch.tensor([0.0, 1.0, 9.0])[load])


@torch.no_grad()
def means_by_arm(prior: LesionLoadPrior, data: PriorTrainingData) -> np.ndarray:
    """Return mean P(active) and mean expected count of the cases of each arm, [2, arm]."""
    expected = prior.expectations(data.patient_features(prior), data.arm)
    outcomes = torch.stack([expected.p_active, expected.lesions])
    return np.array([outcomes[:, data.arm == arm].mean(1).numpy() for arm in (0, 1)]).T


def test_more_lesion_never_lowers_p_active_or_the_expected_count() -> None:
    """Not even where the training cases say so."""
    data = counted_patients(1000, seed=1)
    data = replace(data, burden=data.burden * torch.tensor([1.0, -1.0, -1.0]))
    prior = fitted(data, DropoutRates(channel=0.1), classes=3)
    torch.nn.init.normal_(prior.hidden.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(prior.steps.weight, generator=torch.Generator().manual_seed(1))
    for constrained in (False, True):
        if constrained:
            prior.constrain()
        falls = []
        for channel, feature in ((0, 1), (0, 2), (1, 1), (1, 2)):
            more = data.burden.clone()
            more[:, channel, feature] += 0.3
            with torch.no_grad():
                less, larger = (
                    prior.expectations(prior.patient_features(burden, None), data.arm)
                    for burden in (data.burden, more)
                )
            falls.append((larger.p_active < less.p_active - 1e-6).any())
            falls.append((larger.lesions < less.lesions - 1e-5).any())
        assert any(falls) != constrained


def test_numbers_read_off_flair_are_left_out_where_the_patient_has_the_mask() -> None:
    channels = ("w000/flair", "w000/t2", "w048/flair", "w048/t2", "w048/net2")
    prior = LesionLoadPrior(
        channels, arms=2, classes=2, covariates=(), reader=FlairReader((3.0, 3.0, 3.0))
    )
    readings = torch.ones(1, 4, NUMBERS)
    for masks, kept in (((), 9), ((1,), 6), ((1, 3), 3), ((4,), 6), ((1, 3, 4), 0)):
        burden = torch.zeros(1, 5, 3)
        burden[:, [0, 2, *masks]] = 1
        numbers = prior.patient_features(burden, None, readings)[0, -NUMBERS:]
        assert numbers.sum() == kept


def test_class_without_cases_takes_the_lesion_count_of_the_class_below() -> None:
    data = patients(3, seed=1)
    data = replace(data, lesion_load=torch.tensor([0, 1, 1]), lesions=torch.tensor([0.0, 1.0, 3.0]))
    prior = fitted(data, classes=3)
    assert prior.lesions.tolist() == [0, 2, 2]
    expected = [0, np.log(8) / 2, np.log(8) / 2]
    np.testing.assert_allclose(prior.log_lesions, expected, rtol=1e-6)


def test_prior_fitted_with_dropout_predicts_without_images_or_arm() -> None:
    """Without images the probability is that of the arm, and without the arm that of all cases."""
    data = patients(2000, seed=1)
    prior = fitted(data, DropoutRates(arm=0.3, condition=0.3))
    active, arm = data.lesion_load.float(), data.arm
    empty = replace(data, burden=torch.zeros_like(data.burden))
    for which in (0, 1):
        actual = predicted(prior, empty)[arm == which].mean().item()
        assert actual == pytest.approx(active[arm == which].mean().item(), abs=0.04)
    unknown = predicted(prior, replace(empty, arm=torch.full_like(arm, 2)))
    assert unknown.mean().item() == pytest.approx(active.mean().item(), abs=0.04)


def test_prior_fitted_with_session_dropout_predicts_from_baseline() -> None:
    """The lesion load depends on the later channel alone, so that baseline is uninformative."""
    data = patients(2000, seed=1)
    data = replace(data, burden=data.burden.flip(1))
    early = at_baseline(data)
    rate = data.lesion_load.float()[data.arm == 0].mean().item()
    unaware, aware = (fitted(data, DropoutRates(session=share)) for share in (0.0, 0.3))
    for prior in (unaware, aware):
        prior.arm_offset.zero_()  # which would give both the right mean
    assert mean_by_arm(unaware, early)[0] != pytest.approx(rate, abs=0.1)
    assert mean_by_arm(aware, early)[0] == pytest.approx(rate, abs=0.05)


def test_prior_uses_a_covariate_and_predicts_without_it() -> None:
    data = patients(2000, seed=1)
    age = torch.randn(2000, 1, generator=torch.Generator().manual_seed(3))
    data = replace(data, covariates=age, lesion_load=(age[:, 0] > 0).long())
    prior = fitted(data, DropoutRates(covariate=0.3), covariates=AGE)
    assert alike(predicted(prior, data), data.lesion_load.float(), within=0.1)
    missing = predicted(prior, replace(data, covariates=torch.full_like(age, torch.nan)))
    assert missing.mean().item() == pytest.approx(data.lesion_load.float().mean().item(), abs=0.05)


def test_equal_seeds_fit_equal_priors() -> None:
    rates = DropoutRates(arm=0.1)
    one, other = (fitted(patients(200, seed=1), rates).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_fewer_cases_give_smaller_weights() -> None:
    """The same cases repeated ten times have the same distribution and less shrinkage."""
    few = patients(100, seed=1)
    columns = (getattr(few, field.name) for field in fields(few))
    many = PriorTrainingData(*(torch.cat([column] * 10) for column in columns))
    sizes = [
        sum(parameter.square().sum().item() for parameter in fitted(data).parameters())
        for data in (few, many)
    ]
    assert sizes[0] < 0.8 * sizes[1]


def test_balanced_sampling_does_not_change_the_fitted_prior() -> None:
    natural, balanced = (
        fitted(patients(200, seed=1), replace(SETTINGS, balanced=value).dropout_rates).state_dict()
        for value in (False, True)
    )
    assert all(torch.equal(natural[name], balanced[name]) for name in natural)


ALL_CHANNELS = (
    "w000/flair", "w000/t2", "w000/gad", "w048/flair", "w048/t2", "w048/gad", "w048/net2",
)  # fmt: skip


def test_whole_types_of_input_are_lost_at_their_rates_and_never_flair() -> None:
    dropout = PriorDropout(NO_DROPOUT, gadolinium=0.2, t2_and_gadolinium=0.1, masks=0.3)
    lost = lost_types(dropout, ALL_CHANNELS, seed=0, step=0, cases=20000)
    patterns, counts = np.unique(lost, axis=0, return_counts=True)
    shares = {
        tuple(name for name, one in zip(ALL_CHANNELS, row, strict=True) if one): count / 20000
        for row, count in zip(patterns, counts, strict=True)
    }
    gad, t2 = ("w000/gad", "w048/gad"), ("w000/t2", "w048/t2")
    in_order = [name for name in ALL_CHANNELS if not name.endswith("flair")]
    expected = {
        (): 0.4,
        gad: 0.2,
        tuple(name for name in ALL_CHANNELS if name in gad + t2): 0.1,
        tuple(in_order): 0.3,
    }
    assert shares == pytest.approx(expected, abs=0.015)


def test_rates_of_types_that_exceed_1_are_refused() -> None:
    with pytest.raises(ValueError, match="expected rates of .* sum to at most 1, got 0.5, 0.4"):
        PriorDropout(gadolinium=0.5, t2_and_gadolinium=0.4, masks=0.2)


def test_lost_inputs_are_those_of_both_kinds_of_dropout() -> None:
    data = patients(500, seed=1)
    lost = drop_inputs(
        data, PriorDropout(DropoutRates(session=0.5), masks=0.85, gadolinium=0),
        CHANNELS, seed=0, step=0, null_arm=2,
    )  # fmt: skip
    shown = lost.burden.any(2).float().mean(0)
    assert shown.tolist() == pytest.approx([0, 0], abs=1e-6)  # T2 goes with either type
    lost = drop_inputs(
        data, PriorDropout(DropoutRates(session=0.5), masks=0.4, t2_and_gadolinium=0),
        CHANNELS, seed=0, step=0, null_arm=2,
    )  # fmt: skip
    shown = lost.burden.any(2).float().mean(0)
    assert shown.tolist() == pytest.approx([0.6, 0.3], abs=0.07)


def test_mean_probability_is_the_observed_share_for_every_pattern_of_input() -> None:
    channels = ("w000/flair", "w000/t2", "w048/flair", "w048/net2", "w048/gad")
    random = torch.Generator().manual_seed(0)
    arm = torch.randint(2, (400,), generator=random)
    burden = torch.rand(400, 5, 3, generator=random)
    burden[:, :, 0] = 1
    load = (burden[:, 1, 2] + burden[:, 3, 1] + burden[:, 4, 1] > 1.7 + 0.3 * arm).long()
    nothing = torch.zeros(400, 0), torch.zeros(400, 1, 0)
    data = PriorTrainingData(burden, nothing[0], arm, load, load.float(), nothing[1])
    torch.manual_seed(0)
    prior = LesionLoadPrior(channels, arms=3, classes=2, covariates=())
    fit_lesion_load_prior(prior, data, PriorDropout(), seed=0)
    seen = set()
    for pattern in range(PATTERNS):
        shown = torch.tensor(channels_of_pattern(pattern, channels))
        part = replace(data, burden=burden * shown[:, None])
        seen.add(int(prior.pattern(part.patient_features(prior))[0]))
        assert mean_by_arm(prior, part) == pytest.approx(observed_by_arm(data), abs=1e-4)
    # These channels leave one without images, two at baseline (FLAIR, T2) and four later.
    assert len(seen) == 7


def test_input_beyond_the_training_range_is_clipped_and_named() -> None:
    data = patients(300, seed=1)
    prior = fitted(data)
    inside = prior.patient_features(data.burden[:1], None)
    assert prior.beyond_training(inside) == ()
    limit, beyond, far = (data.burden[:1].clone() for _ in range(3))
    limit[0, 0, 2] = data.burden[:, 0, 2].max()
    beyond[0, 0, 2] = data.burden[:, 0, 2].max() + 1
    far[0, 0, 2] = data.burden[:, 0, 2].max() + 100
    at_limit, outside, far_outside = (
        prior.patient_features(one, None) for one in (limit, beyond, far)
    )
    assert prior.beyond_training(at_limit) == ()
    assert prior.beyond_training(outside) == ("number of lesions of w000/t2",)
    arm = torch.tensor([0])
    assert torch.equal(prior(outside, arm), prior(at_limit, arm))
    assert torch.equal(prior(far_outside, arm), prior(at_limit, arm))
    far[0, 0] = 0
    missing = prior.patient_features(far, None)
    assert prior.beyond_training(missing) == ()
    assert (prior.clip(missing)[0, :3] == 0).all()


def test_euler_number_equals_that_of_scikit_image() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = (
        torch.rand(4, 3, 6, 9, 8, generator=generator)
        < torch.linspace(0, 0.5, 3)[:, None, None, None]
    )
    expected = [
        [skimage_euler_number(mask.numpy(), connectivity=3) for mask in row] for row in masks
    ]
    assert euler_number(masks).tolist() == expected


def test_lesion_burden_has_volume_and_number_of_masks_and_zeros_for_missing_channels() -> None:
    condition = -torch.ones(1, 3, 4, 8, 8)
    condition[0, 1, 0, :2, :2] = 1  # one lesion of 4 voxels
    condition[0, 1, 3, 5:, 5:] = 1  # and one of 9, at the border
    condition[0, 2] = 0
    burden = lesion_burden(condition, [1, 2])
    share = np.log10(13 / 256 + 1e-5) + 3
    np.testing.assert_allclose(burden[0, 1], [1, share, np.log(3)], rtol=1e-5)
    assert burden[0, 0, 2] == 0  # not a mask
    assert burden[0, 2].tolist() == [0, 0, 0]
