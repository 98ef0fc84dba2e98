"""Exceptions of lesioncast. The storage package raises `storage.errors.StorageError` instead.

LesioncastError
  ConfigError
  SimulationError
    PlacementError
    TrialError
  TrainingError
    ChangedSettingsError
    NonFiniteLossError
    NonFiniteStateError
  BundleError
    EvaluationCardError
  ForecastError
  BaselineError
  EvaluationReportError
"""


class LesioncastError(Exception):
    """Base of all errors that lesioncast raises itself; the message says what to do."""


class ConfigError(LesioncastError, ValueError):
    """Invalid configuration file or override; the message names the key."""


class SimulationError(LesioncastError, ValueError):
    """Error while simulating a trial."""


class PlacementError(SimulationError):
    """No free white matter is left for a lesion; the grid is too coarse or too small."""


class TrialError(SimulationError):
    """Output folder that holds other files or a trial with other settings."""


class TrainingError(LesioncastError):
    """Training cannot start or continue."""


class ChangedSettingsError(TrainingError):
    """Checkpoints of a run were written with settings that differ from the current ones."""


class NonFiniteLossError(TrainingError):
    """Loss or gradient is infinite or not a number; the message names the step."""


class NonFiniteStateError(TrainingError):
    """Weights, their average or Adam's moments are infinite or not a number."""


class BundleError(LesioncastError):
    """Incomplete or altered bundle, or another folder; the message names the file."""


class EvaluationCardError(BundleError, ValueError):
    """Evaluation card that does not belong to its bundle or cannot be written."""


class ForecastError(LesioncastError, ValueError):
    """Data from which a forecast or an evaluation cannot be made."""


class BaselineError(LesioncastError, ValueError):
    """Training cases on which a baseline cannot be fitted."""


class EvaluationReportError(LesioncastError, ValueError):
    """Unreadable evaluation report (metrics.json); the message names the file."""
