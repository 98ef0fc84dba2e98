"""Settings of a simulated trial. They and an index determine a subject completely."""

from dataclasses import dataclass


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
