"""Distributions of the radius of lesions."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RadiusDistribution:
    """Lognormal distribution of radii in mm, clipped to [low, high]."""

    median: float
    spread: float
    low: float
    high: float
    #: Large lesions beside the ventricles in place of some others; None without.
    confluent: "ConfluentLesions | None" = None

    def draw(self, rng: np.random.Generator, ventricle_mm: float = np.inf) -> float:
        """Draw the radius of a lesion `ventricle_mm` from the ventricles."""
        if self.confluent and rng.random() < self.confluent.chance(ventricle_mm):
            return self.confluent.radius.draw(rng)
        radius = self.median * np.exp(self.spread * rng.standard_normal())
        return float(np.clip(radius, self.low, self.high))


@dataclass(frozen=True)
class ConfluentLesions:
    """Lesions that have merged to a large one, mostly beside the ventricles."""

    radius: RadiusDistribution
    #: Share of such lesions at the wall of the ventricles.
    share: float
    #: Distance to the ventricles in mm over which the share decays to 1/e.
    mm: float

    def chance(self, ventricle_mm: float) -> float:
        """Return the share of such lesions at a distance to the ventricles."""
        return self.share * float(np.exp(-ventricle_mm / self.mm))
