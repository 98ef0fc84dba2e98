"""Exceptions of lesioncast. Errors of reading and writing data are `storage.errors.StorageError`.

LesioncastError
  ConfigError
  SimulationError
    PlacementError
    TrialError
  TrainingError
    ChangedSettingsError
    NonFiniteLossError
  BundleError
    EvaluationCardError
  ForecastError
  BaselineError
  EvaluationReportError
"""


class LesioncastError(Exception):
    """Base of lesioncast's own errors; the message says what to do."""


class ConfigError(LesioncastError, ValueError):
    """A configuration file or override that cannot be used; the message names the key."""


class SimulationError(LesioncastError, ValueError):
    """A trial that cannot be simulated."""


class PlacementError(SimulationError):
    """A subject whose white matter has no room for its lesions on so coarse or small a grid."""


class TrialError(SimulationError):
    """A folder that cannot take this simulated trial."""


class TrainingError(LesioncastError):
    """Training cannot start or go on."""


class ChangedSettingsError(TrainingError):
    """A run's checkpoints were made with other settings than the ones given now."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient is infinite or not a number; the message names the step."""


class BundleError(LesioncastError):
    """A bundle that is incomplete, altered or not a bundle; the message names the file."""


class EvaluationCardError(BundleError, ValueError):
    """An evaluation card that does not belong to its bundle or cannot be written."""


class ForecastError(LesioncastError, ValueError):
    """A forecast or an evaluation that cannot be made from the given data."""


class BaselineError(LesioncastError, ValueError):
    """A baseline that cannot be fitted on the given cases."""


class EvaluationReportError(LesioncastError, ValueError):
    """An evaluation report, metrics.json, that cannot be read; the message names the file."""
