"""What can go wrong in this room."""


class ForecastError(ValueError):
    """A forecast or an evaluation that cannot be made from what was given."""
