"""Reduced precision of the networks: where it applies, and a word where it would crawl."""

import logging
from contextlib import AbstractContextManager
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]

logger = logging.getLogger(__name__)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 in matrix products and convolutions on `device`, if `precision` says so."""
    enabled = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def warn_if_slow(precision: Precision, device: torch.device) -> None:
    """Says so once, at the start, where bfloat16 convolutions would take about 20 times as long."""
    if precision == "bfloat16" and not has_bfloat16(device):
        logger.warning(
            "precision: bfloat16 needs a processor with AVX-512, got one without, on which it "
            "takes about 20 times as long; set precision to float32"
        )


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` has bfloat16 kernels; a CPU needs AVX-512 for oneDNN's."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
