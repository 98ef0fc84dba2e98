"""Reduced precision is applied when configured, and a slow processor logs a warning."""

import pytest
import torch

from lesioncast.diffusion import precision

CPU = torch.device("cpu")


def test_bfloat16_applies_to_matrix_products_and_float32_does_not() -> None:
    square = torch.ones(2, 2)
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        with precision.autocast(name, CPU):
            assert (square @ square).dtype == dtype


def test_processor_without_bfloat16_logs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: False)
    precision.warn_if_slow("float32", CPU)
    assert not caplog.records
    precision.warn_if_slow("bfloat16", CPU)
    assert "set precision to float32" in caplog.text


def test_accelerators_count_as_having_bfloat16() -> None:
    assert precision.has_bfloat16(torch.device("cuda"))
