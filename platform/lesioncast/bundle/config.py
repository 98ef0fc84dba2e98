"""Configuration of a bundle: the data and the sampler that its weights were trained for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.imaging.intervals import IntervalRanges
from storage import VisitSchedule
from storage.settings import StoreSettings

SCHEMA = 8


@dataclass(frozen=True)
class BundleConfig:
    """Configuration that a bundle stores beside its weights, as config.json."""

    #: Networks, conditioning and loss of the model.
    model: ModelConfig
    #: Settings that prepared the training images; patients are prepared with the same.
    store: StoreSettings
    #: Sampler that forecasts use unless they ask for another one.
    sampler: SamplerConfig
    #: Whether all training subjects are simulated.
    simulated: bool
    #: Share of the training cases whose FLAIR was cleared outside a brain mask.
    brain_mask_share: float
    #: Days between the sessions of its training cases.
    intervals: IntervalRanges = IntervalRanges()
    #: True if training also hid all images after baseline, so that baseline images suffice.
    baseline_only: bool = False
    #: How many times too high the odds of activity are in what stage 2 learned: n_inactive /
    #: n_active of the training cases if it saw equally many of both, else 1. Samples are drawn
    #: without that bias.
    balanced_odds_ratio: float = 1.0
    #: How many times each region's share of lesions exceeds its share of lesion voxels in the
    #: training cases; empty where that was not measured.
    touching_ratios: Mapping[str, float] = field(default_factory=dict)
    #: Version of the layout of the bundle's files.
    schema: int = SCHEMA

    @property
    def slab(self) -> tuple[int, int, int]:
        """Return the size (s, h, w) of a volume, in voxels."""
        return self.store.slab

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return the voxel size along (s, h, w), in mm."""
        return self.store.spacing

    @property
    def visits(self) -> VisitSchedule:
        """Return labels and nominal days of the sessions that it was trained on."""
        return self.store.layout.visits
