"""Settings of a simulated trial. They and an index determine a subject completely."""

from dataclasses import dataclass
from typing import Literal

LocationLaw = Literal["exponential", "measured"]
LesionSizes = Literal["lognormal", "measured"]

# Largest value of each optional part of the disease; at 0 the part is absent.
_STRENGTHS = {
    "enlarging_share": 1.0,
    "regional_propensity": 3.0,
    "prone_places": 1.0,
    "early_sign": 0.3,
}


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Size, image grid and difficulty of a simulated trial."""

    #: Number of subjects.
    subjects: int
    #: Voxels of a volume (s, h, w): slices, rows, columns.
    shape: tuple[int, int, int] = (60, 256, 256)
    #: Voxel size (s, h, w) in mm.
    spacing: tuple[float, float, float] = (3.0, 1.0, 1.0)
    #: h of the severity score S = h z + sqrt(1 - h^2) noise. At 1 a patient's latents determine the
    #: counts, at 0 they are pure chance. The value is a choice, so the difficulty of a simulated
    #: trial says nothing about real disease.
    predictability: float = 0.86
    #: Seed of all random numbers; another seed makes another trial.
    seed: int = 0
    #: Where lesions arise in white matter. "exponential": with density exp(-d / 5 mm) + 0.05 at
    #: distance d to the ventricles, away from the cortex; 45 % arise beside older lesions.
    #: "measured": with the density by distance to the ventricles and to the cortex that was
    #: measured in patients; 30 % arise beside older lesions.
    location_law: LocationLaw = "exponential"
    #: Size of the lesions of w000. "lognormal": radii about 3.2 mm. "measured": as in patients,
    #: where most lesions are smaller and a few beside the ventricles are large.
    lesion_sizes: LesionSizes = "lognormal"
    #: e, the share of new lesions in white matter that enlarge an older lesion. Lesions that start
    #: at the cortex are always separate.
    enlarging_share: float = 0.0
    #: r, the strength of a subject's own preference for regions (front or back, left or right, up
    #: or down, and a smooth random field). It is shared by w000 and both periods.
    regional_propensity: float = 0.0
    #: q, the share of lesions of deep white matter that arise in places which are prone to lesions
    #: in one period: about a tenth of the white matter, drawn anew for each period.
    prone_places: float = 0.0
    #: FLAIR excess, relative to white matter, of tissue that is about to change. It surrounds
    #: lesions that are active in the next period and fills the prone places of that period, at the
    #: session that begins the period and at no other. So the difference of w048 and w000 shows it.
    early_sign: float = 0.0

    def __post_init__(self) -> None:
        if self.subjects < 1:
            raise ValueError(f"simulation.subjects must be at least 1, got {self.subjects}")
        if self.seed < 0:
            raise ValueError(f"simulation.seed must not be negative, got {self.seed}")
        if not 0.0 <= self.predictability <= 1.0:
            raise ValueError(
                f"simulation.predictability must lie in [0, 1], got {self.predictability}"
            )
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(
                f"simulation.shape must be three positive numbers (s, h, w), got {self.shape}"
            )
        if len(self.spacing) != 3 or not all(0.5 <= size <= 12 for size in self.spacing):
            raise ValueError(
                f"simulation.spacing must be three sizes (s, h, w) of 0.5 to 12 mm, "
                f"got {self.spacing}"
            )
        for name, high in _STRENGTHS.items():
            if not 0.0 <= getattr(self, name) <= high:
                raise ValueError(
                    f"simulation.{name} must lie in [0, {high:g}], got {getattr(self, name)}"
                )
