"""Configuration of a bundle: the data and the sampler that its weights were trained for."""

from dataclasses import dataclass

from lesioncast.diffusion.model import ModelConfig
from lesioncast.diffusion.solvers import SamplerConfig
from storage import VisitSchedule

SCHEMA = 5


@dataclass(frozen=True)
class BundleConfig:
    """Configuration that a bundle stores beside its weights, as config.json."""

    #: Networks, conditioning and loss of the model.
    model: ModelConfig
    #: Size (s, h, w) of a volume, in voxels.
    slab: tuple[int, int, int]
    #: Voxel size along (s, h, w), in mm.
    spacing: tuple[float, float, float]
    #: Sampler that forecasts use unless they ask for another one.
    sampler: SamplerConfig
    #: Labels and nominal days of the sessions that it was trained on.
    visits: VisitSchedule = VisitSchedule()
    #: True if training also hid all images after baseline, so that baseline images suffice.
    baseline_only: bool = False
    #: Version of the layout of the bundle's files.
    schema: int = SCHEMA
