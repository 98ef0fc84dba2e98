"""Run the networks in reduced precision, and warn if the processor is slow at it."""

import logging
from contextlib import AbstractContextManager

import torch

from lesioncast.diffusion.settings.process import Precision

logger = logging.getLogger(__name__)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which matrix products and convolutions have the given `precision`.

    float32 leaves them as they are.
    """
    enabled = precision == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def warn_if_slow(precision: Precision, device: torch.device) -> None:
    """Log a warning if bfloat16 is asked for and `device` has no bfloat16 kernels."""
    if precision == "bfloat16" and not has_bfloat16(device):
        logger.warning(
            "precision: expected a processor with AVX-512 for bfloat16, got one without it, on "
            "which a step takes about 20 times as long; set precision to float32"
        )


def has_bfloat16(device: torch.device) -> bool:
    """Return True if `device` has bfloat16 kernels. oneDNN has them for CPUs with AVX-512 only."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
