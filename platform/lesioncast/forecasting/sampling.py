"""Which samples make a forecast, and how they become ensembles.

A sample is named by (case, arm, seed) and the sessions whose images are shown. Seed k of a subject
depends on the run's seed, the subject and k alone. Its arms share it, so that they are compared on
common random numbers, and an ensemble of 32 begins with the ensemble of 16. Subjects do not, so
that a mean over subjects averages the luck of the draw too.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lesioncast.forecasting.ensemble import Counts, Ensemble, ExpectedOutcomes
from lesioncast.imaging.channels import Sessions
from lesioncast.imaging.lesions import LesionCounts, count_lesions
from storage import Case

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]
Draw = Callable[[Floats, npt.NDArray[np.int64], Sequence[int], Floats], Masks]
"""(condition [n, channels, s, h, w], arm [n], seeds [n], covariates [n, k]) -> NET2 masks
[n, s, h, w]."""


class ModelInput(NamedTuple):
    """What a model is shown: a case by its index, the images of `sessions` alone; None for all."""

    case: int
    sessions: Sessions | None = None


class ConditioningArrays(NamedTuple):
    """The same as numbers: the `condition` [channels, s, h, w], null outside the sessions shown,
    and the encoded `covariates` [k], NaN where absent."""

    condition: Floats
    covariates: Floats


Read = Callable[[ModelInput], ConditioningArrays]
ArmExpectations = tuple[ExpectedOutcomes, ...]
"""What a model states of a patient under each arm before it draws."""
PredictExpectations = Callable[[ConditioningArrays], ArmExpectations | None]
"""None for models that only draw."""
Statements = Mapping[ModelInput, ArmExpectations]
"""By what was shown."""


class EnsembleRequest(NamedTuple):
    """One ensemble asked for: a case index under an arm index, from the images of `sessions`
    alone; None for all."""

    case: int
    arm: int
    sessions: Sessions | None = None

    @property
    def shown(self) -> ModelInput:
        """What the model is shown for it."""
        return ModelInput(self.case, self.sessions)


class Sample(NamedTuple):
    """One sample asked for."""

    request: EnsembleRequest
    seed: int


Batch = tuple[Sample, ...]


@dataclass(frozen=True)
class SampleBatch:
    """The samples of one batch: masks packed along w, what was counted of each, and what the model
    states of their cases."""

    packed: npt.NDArray[np.uint8]
    width: int
    lesions: tuple[LesionCounts, ...]
    stated: Statements = field(default_factory=dict)

    def masks(self) -> Masks:
        """[n, s, h, w]."""
        return np.unpackbits(self.packed, axis=-1, count=self.width).astype(bool)


Seeds = tuple[int, ...]


def sample_seeds(seed: int, subject: str, samples: int) -> Seeds:
    """The seeds of a subject's samples 0 .. samples - 1 in a run with `seed`, of 63 bits each.

    Consecutive ones, whose lesion loads are spread out evenly (`drawn_load`).
    """
    name = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big")
    first = int(np.random.SeedSequence((seed, name)).generate_state(1, np.uint64)[0] >> 2)
    return tuple(range(first, first + samples))


def seeds_of(cases: Iterable[Case], *, seed: int, samples: int) -> dict[int, Seeds]:
    """The seeds of each case, by its index."""
    return {case.index: sample_seeds(seed, case.subject, samples) for case in cases}


def plan_batches(
    requests: Sequence[EnsembleRequest], seeds: Mapping[int, Seeds], *, batch_size: int
) -> list[Batch]:
    """All samples of the requests, request by request, cut into batches that share forward passes.

    `seeds` holds those of each case, by its index.
    """
    samples = [Sample(request, seed) for request in requests for seed in seeds[request.case]]
    return [
        tuple(samples[start : start + batch_size]) for start in range(0, len(samples), batch_size)
    ]


def no_expectations(_: ConditioningArrays) -> None:
    """For a model that only draws."""


class BatchSampler:
    """Draws batches with one model and counts lesions where the masks are made.

    `compared` are sessions by which the model also states what it can of every case that it draws.
    """

    def __init__(
        self,
        draw: Draw,
        read: Read,
        *,
        spacing: tuple[float, float, float],
        state: PredictExpectations = no_expectations,
        compared: Sessions | None = None,
    ) -> None:
        self._draw, self._read, self._state = draw, read, state
        self._compared = compared
        self._spacing = spacing

    def __call__(self, batch: Batch) -> SampleBatch:
        shown = [sample.request.shown for sample in batch]
        read = {each: self._read(each) for each in dict.fromkeys(shown)}
        conditions, covariates = zip(*(read[each] for each in shown), strict=True)
        masks = self._draw(
            np.stack(conditions),
            np.array([sample.request.arm for sample in batch], np.int64),
            [sample.seed for sample in batch],
            np.stack(covariates),
        )
        if self._compared is not None:
            others = {ModelInput(each.case, self._compared) for each in shown} - read.keys()
            read |= {each: self._read(each) for each in others}
        stated = {each: self._state(given) for each, given in read.items()}
        return SampleBatch(
            packed=np.packbits(masks, axis=-1),
            width=masks.shape[-1],
            lesions=tuple(count_lesions(mask, self._spacing) for mask in masks),
            stated={key: each for key, each in stated.items() if each is not None},
        )


class RequestSamples(NamedTuple):
    """All samples of one request, before they become an ensemble; `all_stated` holds what is
    stated of its case, if anything, and of others that were drawn beside it."""

    request: EnsembleRequest
    seeds: Seeds
    masks: Masks  # [k, s, h, w]
    lesions: tuple[LesionCounts, ...]
    all_stated: Statements

    @property
    def plain(self) -> Counts:
        """Lesions of each sample as drawn, [k]."""
        return np.array([found.plain for found in self.lesions], np.int64)

    @property
    def opened(self) -> Counts:
        """Lesions of each sample after the opening, [k]."""
        return np.array([found.opened for found in self.lesions], np.int64)

    @property
    def stated(self) -> ExpectedOutcomes | None:
        """What is stated under the arm of the request."""
        statement = self.all_stated.get(self.request.shown)
        return None if statement is None else statement[self.request.arm]


def group_by_request(
    requests: Sequence[EnsembleRequest], seeds: Mapping[int, Seeds], drawn: Iterable[SampleBatch]
) -> Iterator[RequestSamples]:
    """The samples of one request after the other, from the batches of `plan` in order.

    No more than one request's masks are held at a time.
    """
    flat = _unbatched(drawn)
    for request in requests:
        masks, lesions, stated = zip(*islice(flat, len(seeds[request.case])), strict=True)
        yield RequestSamples(request, seeds[request.case], np.stack(masks), lesions, stated[0])


def ensembles(
    requests: Sequence[EnsembleRequest], seeds: Mapping[int, Seeds], drawn: Iterable[SampleBatch]
) -> Iterator[Ensemble]:
    """One ensemble a request, in order, from the batches of `plan` in order."""
    for samples in group_by_request(requests, seeds, drawn):
        yield Ensemble(
            case=samples.request.case,
            arm=samples.request.arm,
            seeds=samples.seeds,
            plain=samples.plain,
            opened=samples.opened,
            stated=samples.stated,
            volume=np.array([found.volume for found in samples.lesions], np.float64),
            probability=np.mean(samples.masks, axis=0, dtype=np.float32),
        )


def _unbatched(drawn: Iterable[SampleBatch]) -> Iterator[tuple[Masks, LesionCounts, Statements]]:
    for batch in drawn:
        yield from (
            (*each, batch.stated) for each in zip(batch.masks(), batch.lesions, strict=True)
        )
