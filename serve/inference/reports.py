"""What engines report to callers that do without torch: each step, and that they stopped."""

from typing import NamedTuple


class StepStats(NamedTuple):
    """Statistics of one step of an engine.

    `running` samples have a slot after the step and `waiting` samples have none, over all engines.
    `rows` is the batch size of the step's forward pass. `finished` holds the arm index of each
    sample that the step finished.
    """

    running: int
    waiting: int
    seconds: float
    rows: int
    finished: tuple[int, ...]


class EngineStoppedError(RuntimeError):
    """A step failed: this replica cannot draw any more, and another one is needed."""
