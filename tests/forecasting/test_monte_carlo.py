"""Stated Monte Carlo errors agree with the actual ones over many random starts of the sequence."""

import numpy as np
import pytest

from lesioncast.forecasting.adaptive import is_precise_enough
from lesioncast.forecasting.ensemble import (
    DrawnCounts,
    ExpectedOutcomes,
    monte_carlo_error,
    wilson_interval,
)
from lesioncast.forecasting.monte_carlo import (
    StepFunction,
    active_fraction_interval,
    active_step_function,
    deviations_over_starts,
    mean_error,
)
from lesioncast.forecasting.sampling import sample_seeds
from lesioncast.seeds import load_quantile

RUNS = 400
LOADS = np.array([0.35, 0.25, 0.15, 0.12, 0.08, 0.05])  # of the classes with lesions, given any
LESIONS = np.array([0.0, 1.5, 3.0, 5.0, 8.0, 12.0, 20.0])  # mean of each class


def edges_of(p_active: float) -> tuple[float, ...]:
    """Return the quantiles at which the class changes, of seven classes."""
    return tuple(np.cumsum([1 - p_active, *(p_active * LOADS)])[:-1].tolist())


def expected(p_active: float) -> ExpectedOutcomes:
    return ExpectedOutcomes(p_active, 0.0, 0.0, load_edges=edges_of(p_active))


def drawn(p_active: float, samples: int, run: int) -> DrawnCounts:
    """Draw counts as a forecast does: the class by the seed, the number of lesions at random.

    The opening removes the lesions of three samples in ten.
    """
    seeds = sample_seeds(run, "sub-1", samples)
    rng = np.random.default_rng([run, 5])
    load = np.searchsorted(edges_of(p_active), [load_quantile(seed) for seed in seeds], "right")
    plain = np.where(load > 0, 1 + rng.poisson(np.maximum(LESIONS[load] - 1, 0)), 0)
    return DrawnCounts(
        plain=plain,
        opened=plain * (rng.random(samples) < 0.7),
        expected=expected(p_active),
        seeds=seeds,
    )


def root_mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.mark.parametrize("samples", [3, 16, 32, 100])
@pytest.mark.parametrize("p_active", [0.02, 0.1, 0.34, 0.5, 0.8])
def test_the_error_of_the_active_fraction_is_exact(p_active: float, samples: int) -> None:
    stated = deviations_over_starts(active_step_function(edges_of(p_active)), samples)
    shares = [np.mean(drawn(p_active, samples, run).plain > 0) for run in range(RUNS)]
    assert stated.weight.sum() == pytest.approx(1)
    assert np.sqrt(stated.variance) == pytest.approx(
        root_mean_square([share - p_active for share in shares]), rel=0.15
    )
    independent = np.sqrt(p_active * (1 - p_active) / samples)
    assert np.sqrt(stated.variance) < independent


def test_the_mean_of_a_step_function_over_starts_by_hand() -> None:
    """Of two seeds 0.618 apart, both, one or none are in the upper half."""
    apart = load_quantile(1)
    step = StepFunction(np.array([0.5]), np.array([0.0, 1.0]), np.zeros(2))
    error, weight = deviations_over_starts(step, 2)
    chance = {value: weight[np.isclose(error, value)].sum() for value in (-0.5, 0.0, 0.5)}
    both = apart - 0.5  # half of the circle less the shorter way between the two
    assert chance == pytest.approx({-0.5: both, 0.0: 1 - 2 * both, 0.5: both})


@pytest.mark.parametrize("opening", [False, True])
@pytest.mark.parametrize("samples", [8, 16, 48])
@pytest.mark.parametrize("p_active", [0.05, 0.3, 0.6])
def test_the_interval_holds_p_active(p_active: float, samples: int, opening: bool) -> None:
    true = p_active * (0.7 if opening else 1.0)
    intervals = [
        active_fraction_interval(drawn(p_active, samples, run), opening=opening)
        for run in range(RUNS)
    ]
    held = np.mean([low - 1e-9 <= true <= high + 1e-9 for low, high in intervals])
    assert held > 0.94
    width = np.mean([high - low for low, high in intervals])
    low, high = wilson_interval(true, samples)
    # After the opening most of the error is independent, as Wilson's interval has it.
    assert width < (1.0 if opening else 0.75) * (high - low)


@pytest.mark.parametrize("samples", [16, 32, 64])
@pytest.mark.parametrize("p_active", [0.3, 0.5, 0.8])
def test_the_error_of_the_mean_count_is_the_spread_over_runs(p_active: float, samples: int) -> None:
    runs = [drawn(p_active, samples, run) for run in range(RUNS)]
    spread = np.std([one.plain.mean() for one in runs])
    stated = [mean_error(one.plain, one.seeds, one.load_edges) for one in runs]
    # Joined cells overstate the error a little where samples are few.
    assert 0.9 * spread < root_mean_square(stated) < (1.35 if samples < 64 else 1.2) * spread
    independent = [monte_carlo_error(one.plain) for one in runs]
    assert root_mean_square(independent) > 1.45 * spread


def test_the_error_of_a_difference_uses_the_classes_of_both_arms() -> None:
    edges = (*edges_of(0.5), *edges_of(0.3))
    pairs = [(drawn(0.5, 32, run), drawn(0.3, 32, run)) for run in range(RUNS)]
    differences = [one.opened - other.opened for one, other in pairs]
    stated = [
        mean_error(difference, one.seeds, edges)
        for difference, (one, _) in zip(differences, pairs, strict=True)
    ]
    spread = np.std([difference.mean() for difference in differences])
    assert 0.85 * spread < root_mean_square(stated) < 1.3 * spread


@pytest.mark.parametrize("p_active", [0.03, 0.1, 0.2, 0.5])
def test_sampling_stops_when_the_actual_error_is_within_the_tolerance(p_active: float) -> None:
    tolerance, off, drawn_samples = 0.05, [], []
    for run in range(100):
        for samples in range(8, 400, 8):
            so_far = {"arm": drawn(p_active, samples, run)}
            if is_precise_enough(so_far, opening=False, tolerance=tolerance):
                break
        off.append(abs(np.mean(so_far["arm"].plain > 0) - p_active))
        drawn_samples.append(samples)
    assert np.mean(np.array(off) <= tolerance) >= 0.95
    assert max(drawn_samples) <= 40  # independent samples need 100 and more


def test_samples_of_a_model_without_loads_count_as_independent() -> None:
    plain = np.array([0, 2, 0, 1, 0, 0, 3, 0])
    alone = DrawnCounts(plain=plain, opened=plain, seeds=tuple(range(8)))
    assert active_fraction_interval(alone, opening=False) == wilson_interval(3 / 8, 8)
    assert mean_error(plain, alone.seeds, alone.load_edges) == monte_carlo_error(plain)
