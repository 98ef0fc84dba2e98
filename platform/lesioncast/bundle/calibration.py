"""The calibration of a bundle: what cases with known outcomes taught about its forecasts.

The file calibration.json belongs to the bundle: a new calibration makes a new bundle, because it
changes what forecasts state.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lesioncast.bundle.json_files import read_json, write_json
from lesioncast.calibration.fit import Calibration
from lesioncast.errors import BundleError, ConfigError
from lesioncast.parsing import parse_dataclass

CALIBRATION_FILE = "calibration.json"
RECALIBRATE = "run `lesioncast calibrate` to make it again"


@dataclass(frozen=True)
class CalibrationCohort:
    """The cases that a calibration was learned on."""

    #: In words, such as "318 validation cases of the trial X".
    name: str
    #: Number of cases that received each arm; an arm that none received is left out.
    arms: Mapping[str, int]
    #: Whether the cases are simulated.
    simulated: bool
    #: Digest of the case table of the store that holds the cases.
    store: str
    #: Digests of the cases. No evaluation may score one of them.
    case_digests: tuple[str, ...]

    @property
    def cases(self) -> int:
        """Return the number of cases."""
        return sum(self.arms.values())


@dataclass(frozen=True)
class PatternCalibration:
    """Calibration of the forecasts from one pattern of images, such as FLAIR alone.

    It was learned on the cases with these images, after hiding all others. It lacks the levels for
    which these cases are too few.
    """

    #: Name of the pattern.
    pattern: str
    calibration: Calibration


@dataclass(frozen=True)
class BundleCalibration:
    """Calibration of a bundle's forecasts, by the images that a patient has."""

    cohort: CalibrationCohort
    #: One for each pattern that the cohort could be shown in.
    patterns: tuple[PatternCalibration, ...]
    #: Digest of the bundle whose calibration this one replaced; None if training learned it.
    parent: str | None = None

    def of_pattern(self, pattern: str) -> Calibration | None:
        """Return the calibration of a pattern, None if no case of the cohort had its images."""
        return next((one.calibration for one in self.patterns if one.pattern == pattern), None)

    @property
    def description(self) -> str:
        """Return a sentence on the cohort."""
        arms = ", ".join(f"{number} on {arm}" for arm, number in self.cohort.arms.items())
        return f"{self.cohort.name} ({arms})"


def write_calibration(folder: Path, calibration: BundleCalibration) -> None:
    """Write the calibration into the folder of a bundle."""
    write_json(folder / CALIBRATION_FILE, asdict(calibration))


def read_calibration(folder: Path) -> BundleCalibration:
    """Read the calibration of the bundle in `folder`. Raise BundleError if it cannot be used."""
    path = folder / CALIBRATION_FILE
    try:
        return parse_dataclass(BundleCalibration, read_json(path), source=str(path))
    except (OSError, ValueError, ConfigError) as error:
        raise BundleError(f"{error}; {RECALIBRATE}") from error
