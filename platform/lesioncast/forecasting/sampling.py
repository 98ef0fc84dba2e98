"""Plan the samples of a forecast, draw them in batches, and group them into ensembles.

A sample is determined by its case, arm and seed and by the sessions whose images the model sees.
Seed k of a subject depends on the run's seed, the subject's name and k alone. The arms of a subject
share their seeds: arms are compared on common random numbers. An ensemble of 32 samples begins with
the ensemble of 16. Subjects have seeds of their own, so that the Monte Carlo errors of different
subjects are independent and average out over subjects.

There are two schemes of seeds. Forecasts take `sample_seeds`, whose lesion loads are spread out
evenly, so that few samples give a precise mean. Evaluations take `independent_seeds`, because the
fair scores of an ensemble (Ferro 2014) are unbiased for independent samples only.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import LabelMap
from lesioncast.forecasting.ensemble import Counts, Ensemble, ExpectedOutcomes
from lesioncast.imaging.channels import Sessions
from lesioncast.imaging.lesions import LesionCounts, count_lesions
from storage import Case

Masks = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]


class ModelInput(NamedTuple):
    """Input of the model: the index of a case, and the sessions to show of it, None for all."""

    case: int
    sessions: Sessions | None = None


class ConditioningArrays(NamedTuple):
    """Input of the model as arrays.

    `condition` [channels, s, h, w] is zero for channels that the case lacks and for sessions that
    are not shown. `covariates` [k] are encoded; missing ones are NaN. `parcellation` [s, h, w] is
    read by a spatial prior alone; None if the case or the model has none.
    """

    condition: Floats
    covariates: Floats
    parcellation: LabelMap | None = None


Draw = Callable[[Sequence[ConditioningArrays], npt.NDArray[np.int64], Sequence[int]], Masks]
"""Samples masks: (input, arm, seed), n of each -> NET2 masks [n, s, h, w]."""
Read = Callable[[ModelInput], ConditioningArrays]
Hide = Callable[[ConditioningArrays, Sessions], ConditioningArrays]
"""Returns the input of a case without the images of all but the given sessions."""
ArmExpectations = tuple[ExpectedOutcomes, ...]
"""Exact expectations of a patient under each arm."""
PredictExpectations = Callable[[ConditioningArrays], ArmExpectations | None]
"""Computes exact expectations from the input; returns None for models that only sample."""
ExpectationsByInput = Mapping[ModelInput, ArmExpectations]
"""Exact expectations by the input that they are about."""


class EnsembleRequest(NamedTuple):
    """A requested ensemble: the index of a case, the index of an arm, and the sessions whose images
    the model sees, None for all."""

    case: int
    arm: int
    sessions: Sessions | None = None

    @property
    def model_input(self) -> ModelInput:
        """Return the input of the model for this ensemble."""
        return ModelInput(self.case, self.sessions)


class Sample(NamedTuple):
    """A requested sample."""

    request: EnsembleRequest
    seed: int


Batch = tuple[Sample, ...]


@dataclass(frozen=True)
class SampleBatch:
    """Samples of one batch."""

    #: Masks [n, s, h, ceil(w / 8)] as bits packed along w.
    packed: npt.NDArray[np.uint8]
    #: Width w of the masks.
    width: int
    #: Lesion counts and volume of each sample [n].
    lesions: tuple[LesionCounts, ...]
    #: Exact expectations of the cases in the batch, for models that compute them.
    expected: ExpectationsByInput = field(default_factory=dict)
    #: Probability of a lesion at each voxel without sampling, [s, h, w], by request, if computed.
    maps: Mapping[EnsembleRequest, Floats] = field(default_factory=dict)

    @classmethod
    def from_masks(
        cls,
        masks: Masks,
        spacing: Sequence[float],
        *,
        expected: ExpectationsByInput | None = None,
    ) -> "SampleBatch":
        """Pack `masks` [n, s, h, w] with voxels of `spacing` mm, and count their lesions."""
        return cls(
            packed=np.packbits(masks, axis=-1),
            width=masks.shape[-1],
            lesions=tuple(count_lesions(mask, spacing) for mask in masks),
            expected=expected or {},
        )

    def masks(self) -> Masks:
        """Return the masks [n, s, h, w]."""
        return np.unpackbits(self.packed, axis=-1, count=self.width).astype(bool)


Seeds = tuple[int, ...]
INDEPENDENT = 1  # mixed into the seed, so that the two schemes share no sample


def sample_seeds(seed: int, subject: str, samples: int) -> Seeds:
    """Return the seeds of a subject's samples 0 .. samples - 1 in a run with `seed`.

    They are consecutive numbers of 63 bits: the lesion loads that consecutive seeds draw are spread
    out evenly (see lesioncast.diffusion.lesion_load).
    """
    sequence = np.random.SeedSequence((seed, _number_of(subject)))
    first = int(sequence.generate_state(1, np.uint64)[0] >> 2)
    return tuple(range(first, first + samples))


def independent_seeds(seed: int, subject: str, samples: int) -> Seeds:
    """Return seeds of a subject's samples 0 .. samples - 1 whose samples are independent.

    They are random numbers of 63 bits, so the lesion loads that they draw are independent, too. As
    with `sample_seeds`, seed k depends on `seed`, the subject's name and k alone.
    """
    numbers = np.random.PCG64(np.random.SeedSequence((seed, _number_of(subject), INDEPENDENT)))
    return tuple(int(number) >> 1 for number in numbers.random_raw(samples))


def _number_of(subject: str) -> int:
    """Return the subject's name as a number of 64 bits."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big")


SeedScheme = Callable[[int, str, int], Seeds]
"""Makes seeds from the seed of a run, the name of a subject and a number of samples."""


def seeds_of(
    cases: Iterable[Case], *, seed: int, samples: int, scheme: SeedScheme = sample_seeds
) -> dict[int, Seeds]:
    """Return the seeds of each case, by its index."""
    return {case.index: scheme(seed, case.subject, samples) for case in cases}


def plan_batches(
    requests: Sequence[EnsembleRequest], seeds: Mapping[int, Seeds], *, batch_size: int
) -> list[Batch]:
    """Cut the samples of all requests, in order, into batches that share forward passes.

    `seeds` holds the seeds of each case, by its index.
    """
    samples = [Sample(request, seed) for request in requests for seed in seeds[request.case]]
    return [
        tuple(samples[start : start + batch_size]) for start in range(0, len(samples), batch_size)
    ]


def no_expectations(_: ConditioningArrays) -> None:
    """Return None, for a model that only samples."""


class BatchSampler:
    """Sampler of batches with one model, which also counts the lesions of each mask.

    `predict` computes the exact expectations of every case in a batch, from the sessions that its
    samples are drawn from and, if `comparison_sessions` are given, from these as well. With `hide`,
    a case whose images are all at hand is not read again for that.
    """

    def __init__(
        self,
        draw: Draw,
        read: Read,
        *,
        spacing: tuple[float, float, float],
        predict: PredictExpectations = no_expectations,
        comparison_sessions: Sessions | None = None,
        hide: Hide | None = None,
    ) -> None:
        self._draw, self._read, self._predict = draw, read, predict
        self._comparison_sessions, self._hide = comparison_sessions, hide
        self._spacing = spacing

    def __call__(self, batch: Batch) -> SampleBatch:
        """Sample a batch and return its masks, lesion counts and expectations."""
        inputs = [sample.request.model_input for sample in batch]
        # Samples of one case share their input, which is read once.
        arrays = {key: self._read(key) for key in dict.fromkeys(inputs)}
        masks = self._draw(
            [arrays[key] for key in inputs],
            np.array([sample.request.arm for sample in batch], np.int64),
            [sample.seed for sample in batch],
        )
        if self._comparison_sessions is not None:
            others = {
                ModelInput(key.case, self._comparison_sessions) for key in inputs
            } - arrays.keys()
            arrays |= {key: self._for_comparison(key, arrays) for key in others}
        expectations = {key: self._predict(conditioning) for key, conditioning in arrays.items()}
        return SampleBatch.from_masks(
            masks,
            self._spacing,
            expected={key: of_arms for key, of_arms in expectations.items() if of_arms is not None},
        )

    def _for_comparison(
        self, key: ModelInput, at_hand: Mapping[ModelInput, ConditioningArrays]
    ) -> ConditioningArrays:
        """Return the input of a case from the comparison sessions alone."""
        complete = at_hand.get(ModelInput(key.case))
        if complete is None or self._hide is None or key.sessions is None:
            return self._read(key)
        return self._hide(complete, key.sessions)


class RequestSamples(NamedTuple):
    """All samples of one request, before they become an ensemble.

    `masks` is [k, s, h, w]. `all_expected` holds the exact expectations of the request's case, if
    there are any, and of the other cases in the same batch. `closed_form_map` [s, h, w] is the
    probability of a lesion at each voxel without sampling, if it was computed.
    """

    request: EnsembleRequest
    seeds: Seeds
    masks: Masks
    lesions: tuple[LesionCounts, ...]
    all_expected: ExpectationsByInput
    closed_form_map: Floats | None = None

    @property
    def plain(self) -> Counts:
        """Return the number of lesions of each sample [k], without the opening."""
        return np.array([counts.plain for counts in self.lesions], np.int64)

    @property
    def opened(self) -> Counts:
        """Return the number of lesions of each sample [k], after the opening."""
        return np.array([counts.opened for counts in self.lesions], np.int64)

    @property
    def expected(self) -> ExpectedOutcomes | None:
        """Return the exact expectations under the arm of the request, if there are any."""
        expectations = self.all_expected.get(self.request.model_input)
        return None if expectations is None else expectations[self.request.arm]


def group_by_request(
    requests: Sequence[EnsembleRequest], seeds: Mapping[int, Seeds], drawn: Iterable[SampleBatch]
) -> Iterator[RequestSamples]:
    """Yield the samples of each request in turn, from the batches of `plan_batches` in order.

    Only the masks of one request are in memory at a time.
    """
    samples = _unbatched(drawn)
    for request in requests:
        masks, lesions, batches = zip(*islice(samples, len(seeds[request.case])), strict=True)
        yield RequestSamples(
            request,
            seeds[request.case],
            np.stack(masks),
            lesions,
            batches[0].expected,
            batches[0].maps.get(request),
        )


def ensembles(
    requests: Sequence[EnsembleRequest], seeds: Mapping[int, Seeds], drawn: Iterable[SampleBatch]
) -> Iterator[Ensemble]:
    """Return the ensemble of each request, from the batches of `plan_batches` in order."""
    return map(ensemble_of, group_by_request(requests, seeds, drawn))


def ensemble_of(samples: RequestSamples) -> Ensemble:
    """Return the ensemble of one request."""
    return Ensemble(
        case=samples.request.case,
        arm=samples.request.arm,
        seeds=samples.seeds,
        plain=samples.plain,
        opened=samples.opened,
        expected=samples.expected,
        volume=np.array([counts.volume for counts in samples.lesions], np.float64),
        sample_share=np.mean(samples.masks, axis=0, dtype=np.float32),
        closed_form_map=samples.closed_form_map,
    )


def _unbatched(
    drawn: Iterable[SampleBatch],
) -> Iterator[tuple[Masks, LesionCounts, SampleBatch]]:
    """Yield the mask, the lesion counts and the batch of each sample."""
    for batch in drawn:
        for mask, lesions in zip(batch.masks(), batch.lesions, strict=True):
            yield mask, lesions, batch
