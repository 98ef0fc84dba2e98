"""The study of regional risks: the arithmetic of its table."""

import numpy as np

from tests.benchmarks.studies.regional_risk import ACTIVE, CLOSED_FORM, Forecast, tables


def test_a_share_of_samples_is_scored_worse_by_its_sampling_variance() -> None:
    observed = np.array([True, False])
    risks = {CLOSED_FORM: np.array([0.5, 0.2]), ACTIVE: np.array([0.5, 0.5])}
    white, cortex = tables([Forecast(risks, observed)] * 3, seed=0)
    assert white.startswith("white_matter: 3 of 3 cases, 1.000")
    lines = {line.split("|")[1].strip(): line for line in cortex.splitlines() if "|" in line}
    assert "| 0.200 | 0.200 (0.200 to 0.200) | 0.0400 (0.0400 to 0.0400) |" in lines[CLOSED_FORM]
    assert f"{0.04 + 0.2 * 0.8 / 16:.4f}" in lines["share of 16 samples of this risk"]
    assert "0.2500" in lines[ACTIVE]
