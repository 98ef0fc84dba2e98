"""What can go wrong in training."""


class TrainingError(Exception):
    """Training cannot start or go on; the message says what to do."""


class ChangedSettingsError(TrainingError):
    """A run's checkpoints were made with other settings than the ones given now."""


class NonFiniteLossError(TrainingError):
    """The loss or its gradient is infinite or no number; the message names the step."""


class BundleError(TrainingError):
    """A bundle that is incomplete, altered, or not one; the message names the file."""
