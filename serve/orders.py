"""What a client may ask for, and what of it is drawn in one go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from lesioncast.forecasting.draws import sample_seeds
from serve.problems import RequestError

Word = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9 _.+-]+$")]


class Wishes(BaseModel):
    """A forecast under some arms or all of them.

    The same seed names the same samples, whatever else is asked for; arms share them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    arms: list[str] | None = Field(default=None, min_length=1, max_length=64)
    samples: int = Field(default=16, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**63)
    reference_arm: str | None = Field(default=None, max_length=64)


class Order(Wishes):
    """A forecast of one subject of the mounted store."""

    subject: str = Field(max_length=64, examples=["sub-0001"])


class UploadOrder(Wishes):
    """A forecast of the patient whose images come with it.

    `subject` names the results, and the samples with the seed, as it would in a store;
    `covariates` are those that the bundle's model is told of, the others are taken as not known.
    """

    subject: str = Field(default="sub-upload", pattern="^sub-[A-Za-z0-9]{1,58}$")
    covariates: dict[str, Word | int | float] = Field(default_factory=dict, max_length=64)


class Patient(NamedTuple):
    """Who is forecast: a subject of the mounted store, or of what was uploaded for a forecast."""

    subject: str
    upload: str | None  # the forecast's id


@dataclass(frozen=True)
class Block:
    """Some samples of one arm, drawn by one call: `first` is the number of their first seed."""

    arm: str
    first: int
    seeds: tuple[int, ...]


def require_subject(order: Order, subjects: Sequence[str]) -> None:
    """Raises RequestError for a subject that the store does not hold."""
    if order.subject not in subjects:
        raise RequestError(
            422, f"subject: expected a subject of the store, got {order.subject}.", field="subject"
        )


def settle(wishes: Wishes, *, arms: Sequence[str], max_samples: int) -> dict[str, Any]:
    """The wishes with every default made explicit, as they are recorded. Raises RequestError."""
    wanted = list(arms) if wishes.arms is None else wishes.arms
    for number, arm in enumerate(wanted):
        if arm not in arms or arm in wanted[:number]:
            raise RequestError(
                422,
                f"arms.{number}: expected each once of {', '.join(arms)}; got {arm}.",
                field=f"arms.{number}",
            )
    reference = wanted[0] if wishes.reference_arm is None else wishes.reference_arm
    if reference not in wanted:
        raise RequestError(
            422,
            f"reference_arm: expected one of {', '.join(wanted)}, got {reference}.",
            field="reference_arm",
        )
    if wishes.samples > max_samples:
        raise RequestError(
            422, f"samples: expected at most {max_samples}, got {wishes.samples}.", field="samples"
        )
    return wishes.model_dump() | {"arms": wanted, "reference_arm": reference}


def blocks(order: Mapping[str, Any], *, size: int) -> list[Block]:
    """The order's samples in blocks of `size` seeds; early blocks of all arms come first."""
    seeds = sample_seeds(order["seed"], order["subject"], order["samples"])
    return [
        Block(arm, first, seeds[first : first + size])
        for first in range(0, len(seeds), size)
        for arm in order["arms"]
    ]
