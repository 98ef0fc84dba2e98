"""What defines a simulated trial: with these settings and an index, a subject is determined."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SimulationSettings:
    """Size, grid and difficulty of a simulated trial.

    `shape` and `spacing` (mm) are (s, h, w): slices, rows, columns. `predictability` is h of the
    severity score S = h z + sqrt(1 - h^2) noise: 1 makes counts a function of the patient, 0 makes
    them pure chance. It is a choice, so how easy the trial is says nothing about real disease.
    """

    subjects: int
    shape: tuple[int, int, int] = (60, 256, 256)
    spacing: tuple[float, float, float] = (3.0, 1.0, 1.0)
    predictability: float = 0.86
    seed: int = 0

    def __post_init__(self) -> None:
        if self.subjects < 1:
            raise ValueError(f"simulation.subjects must be at least 1, got {self.subjects}")
        if self.seed < 0:
            raise ValueError(f"cohort.seed must not be negative, got {self.seed}")
        if not 0.0 <= self.predictability <= 1.0:
            raise ValueError(f"cohort.predictability must lie in [0, 1], got {self.predictability}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(
                f"simulation.shape must be three positive numbers (s, h, w), got {self.shape}"
            )
        if len(self.spacing) != 3 or not all(0.5 <= size <= 12 for size in self.spacing):
            raise ValueError(
                f"simulation.spacing must be three sizes (s, h, w) of 0.5 to 12 mm, "
                f"got {self.spacing}"
            )
