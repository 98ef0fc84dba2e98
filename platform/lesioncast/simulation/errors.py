"""What can go wrong with a simulated trial."""


class CohortError(ValueError):
    """A trial that cannot be simulated; the message says why and what to do."""


class PlacementError(CohortError):
    """A subject whose white matter has no room for its lesions on so coarse or small a grid."""


class TrialError(CohortError):
    """A folder that cannot take this simulated trial."""
