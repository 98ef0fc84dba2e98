"""What a client may ask for, and what of it is drawn in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lesioncast.forecasting.draws import sample_seeds
from serve.problems import RequestError


class Order(BaseModel):
    """A forecast of one subject of the mounted store, under some arms or all of them.

    The same seed names the same samples, whatever else is asked for; arms share them.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    subject: str = Field(max_length=64, examples=["sub-0001"])
    arms: list[str] | None = Field(default=None, min_length=1, max_length=64)
    samples: int = Field(default=16, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**63)
    reference_arm: str | None = Field(default=None, max_length=64)


@dataclass(frozen=True)
class Block:
    """Some samples of one arm, drawn by one call: `first` is the number of their first seed."""

    arm: str
    first: int
    seeds: tuple[int, ...]


def settle(
    order: Order, *, subjects: Sequence[str], arms: Sequence[str], max_samples: int
) -> dict[str, Any]:
    """The order with every default made explicit, as it is recorded. Raises RequestError."""
    if order.subject not in subjects:
        raise RequestError(
            422, f"subject: expected a subject of the store, got {order.subject}.", field="subject"
        )
    wanted = list(arms) if order.arms is None else order.arms
    for number, arm in enumerate(wanted):
        if arm not in arms or arm in wanted[:number]:
            raise RequestError(
                422,
                f"arms.{number}: expected each once of {', '.join(arms)}; got {arm}.",
                field=f"arms.{number}",
            )
    reference = wanted[0] if order.reference_arm is None else order.reference_arm
    if reference not in wanted:
        raise RequestError(
            422,
            f"reference_arm: expected one of {', '.join(wanted)}, got {reference}.",
            field="reference_arm",
        )
    if order.samples > max_samples:
        raise RequestError(
            422, f"samples: expected at most {max_samples}, got {order.samples}.", field="samples"
        )
    return order.model_dump() | {"arms": wanted, "reference_arm": reference}


def blocks(order: dict[str, Any], *, size: int) -> list[Block]:
    """The order's samples in blocks of `size` seeds; early blocks of all arms come first."""
    seeds = sample_seeds(order["seed"], order["subject"], order["samples"])
    return [
        Block(arm, first, seeds[first : first + size])
        for first in range(0, len(seeds), size)
        for arm in order["arms"]
    ]
