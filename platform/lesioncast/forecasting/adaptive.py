"""Sample in blocks of seeds, and stop once P(active) is known precisely enough.

Where a forecast names a `tolerance`, its samples are drawn one block of seeds at a time, under all
arms. The decision to stop depends on the blocks drawn so far, in their order, and on nothing else.
A forecast that was interrupted therefore ends with the same samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from lesioncast.forecasting.ensemble import DrawnCounts, active_fraction
from lesioncast.forecasting.monte_carlo import active_fraction_interval
from lesioncast.forecasting.sampling import sample_seeds


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """The samples that one forecast asks for."""

    #: Name of the subject, such as sub-0001: seeds depend on it.
    subject: str
    #: Treatment arms, all on the same seeds.
    arms: tuple[str, ...]
    #: Seed of the forecast.
    seed: int
    #: Number of samples an arm; the largest number where there is a tolerance.
    samples: int
    #: Largest distance of the active fraction from either end of its 95 % interval; None draws all
    #: samples.
    tolerance: float | None = None
    #: Settings of the sampler that replace the bundle's own, such as num_steps.
    sampler_overrides: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleBlock:
    """Samples of one arm that one call draws; `first` is the position of their first seed."""

    arm: str
    first: int
    seeds: tuple[int, ...]


def split_into_blocks(request: SamplingRequest, *, size: int) -> list[SampleBlock]:
    """Split the samples into blocks of `size` seeds, the first block of every arm first."""
    seeds = sample_seeds(request.seed, request.subject, request.samples)
    return [
        SampleBlock(arm, first, seeds[first : first + size])
        for first in range(0, len(seeds), size)
        for arm in request.arms
    ]


def sampling_rounds(
    blocks: Sequence[SampleBlock], *, tolerance: float | None
) -> Iterator[list[SampleBlock]]:
    """Yield the blocks to draw before the next call of `is_precise_enough`.

    With a tolerance a round holds one block of every arm; without one it holds all blocks.
    """
    if tolerance is None:
        yield list(blocks)
        return
    for _, blocks_of_round in groupby(blocks, key=lambda block: block.first):
        yield list(blocks_of_round)


def is_precise_enough(
    drawn: Mapping[str, DrawnCounts], *, opening: bool, tolerance: float | None
) -> bool:
    """Return True if every arm's active fraction is known to within the tolerance.

    `drawn` holds the samples so far, by arm. The end of the 95 % interval that lies further from
    the fraction counts: near 0 and 1 the other end is nearer.
    """
    return tolerance is not None and all(
        _largest_error(samples, opening=opening) <= tolerance for samples in drawn.values()
    )


def _largest_error(samples: DrawnCounts, *, opening: bool) -> float:
    fraction = active_fraction(samples.counts(opening=opening))
    low, high = active_fraction_interval(samples, opening=opening)
    return max(fraction - low, high - fraction)


def sampling_notes(request: SamplingRequest) -> tuple[str, ...]:
    """Return a sentence for each way in which sampling differs from the bundle's default."""
    overrides = ", ".join(f"{name} {value:g}" for name, value in request.sampler_overrides.items())
    notes = [f"Drawn with {overrides} in place of the bundle's own."] if overrides else []
    if request.tolerance is not None:
        notes.append(
            f"Drawn until the share of samples with lesions was known to {request.tolerance:g} "
            f"under every arm (95 % interval), or for {request.samples} samples."
        )
    return tuple(notes)
