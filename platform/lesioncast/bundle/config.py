"""Configuration of a bundle: what its weights are for."""

from dataclasses import dataclass

from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.solvers import SamplerConfig

SCHEMA = 3


@dataclass(frozen=True)
class BundleConfig:
    """What a bundle's weights are for: `slab` (s, h, w) in voxels, its `spacing` in mm.

    `from_start`: they were trained to answer from the images of w000 alone, too.
    """

    model: ModelConfig
    slab: tuple[int, int, int]
    spacing: tuple[float, float, float]
    sampler: SamplerConfig
    from_start: bool = False
    schema: int = SCHEMA
