"""Read what the prior of the lesion load, and the reader of FLAIR, are fitted to."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lesioncast.diffusion.controlnet import lesion_burden
from lesioncast.diffusion.lesion_load import LesionLoadPrior, lesion_load_class
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.settings.model import ModelConfig
from lesioncast.imaging.channels import TARGET_CHANNELS, Channels, encode_case, parse_channels
from lesioncast.imaging.covariates import encode_covariates
from lesioncast.imaging.lesions import components
from lesioncast.priors.flair_reader.fit import (
    READER_MASKS,
    ReaderCases,
    fit_flair_reader,
    readings,
)
from lesioncast.priors.flair_reader.reader import FLAIR_SESSIONS
from storage import Case, Store


@dataclass(frozen=True)
class PriorTrainingData:
    """Conditions and lesion loads of n cases."""

    #: Lesion burden of the images, [n, channel, 3].
    burden: Tensor
    #: Encoded covariates, NaN if missing, [n, covariate].
    covariates: Tensor
    #: Row of the arm received, [n].
    arm: Tensor
    #: Lesion load class at outcome, [n].
    lesion_load: Tensor
    #: Number of lesions at outcome, [n].
    lesions: Tensor
    #: Numbers read off FLAIR for each choice of sessions, [n, choice, number]; no number for a
    #: prior without a reader.
    readings: Tensor

    def rows(self, index: Tensor) -> "PriorTrainingData":
        """Return the cases at `index`, in that order."""
        index = index.to(self.arm.device)
        columns = (getattr(self, field.name)[index] for field in fields(PriorTrainingData))
        return PriorTrainingData(*columns)

    def patient_features(self, prior: LesionLoadPrior) -> Tensor:
        """Return the features [n, feature] that `prior` has of the cases."""
        return prior.patient_features(self.burden, self.covariates, self.readings)


class LoadedCases(NamedTuple):
    """Cases as read from a store.

    `reader_cases` are what the reader of FLAIR is fitted to, None for a model without one. The
    readings of `data` are empty until the reader is fitted.
    """

    data: PriorTrainingData
    reader_cases: ReaderCases | None


def load_prior_data(cases: Sequence[Case], store: Store, model: ModelConfig) -> LoadedCases:
    """Read what the lesion load prior of a model is fitted to."""
    condition_channels = parse_channels(model.control.condition)
    reader_masks = parse_channels(READER_MASKS)
    unet, spacing = model.unet, model.control.flair_reader_spacing

    def read(case: Case) -> LoadedCases:
        arrays = store.read(case.index)

        def encode(channels: Channels) -> Tensor:
            return torch.from_numpy(encode_case(arrays, channels=channels))[None]

        condition, x = encode(condition_channels), encode(TARGET_CHANNELS)
        lesions = components(x[0, NET2].numpy() > 0)[1]
        data = PriorTrainingData(
            burden=lesion_burden(condition, model.control.masks),
            covariates=torch.from_numpy(encode_covariates(model.covariates, case))[None],
            arm=torch.tensor([unet.null_arm if case.arm_index < 0 else case.arm_index]),
            lesion_load=lesion_load_class(x[:, NET2], unet.lesion_load_thresholds),
            lesions=torch.tensor([lesions], dtype=torch.float32),
            readings=torch.zeros(1, 1, 0),
        )
        if spacing is None:
            return LoadedCases(data, None)
        # The reader sees the sessions whose FLAIR is in the condition. It learns from masks even
        # where they are not.
        flair = encode(tuple((session, "flair") for session in FLAIR_SESSIONS))
        for row, session in enumerate(FLAIR_SESSIONS):
            if f"{session}/flair" not in model.control.condition:
                flair[:, row] = 0
        return LoadedCases(data, ReaderCases.of(flair, encode(reader_masks), spacing))

    with ThreadPoolExecutor() as threads:
        rows = list(threads.map(read, cases))
    columns = zip(*(vars(row.data).values() for row in rows), strict=True)
    of_reader = [row.reader_cases for row in rows if row.reader_cases is not None]
    return LoadedCases(
        PriorTrainingData(*map(torch.cat, columns)),
        ReaderCases.cat(of_reader) if of_reader else None,
    )


def fit_reader(prior: LesionLoadPrior, loaded: LoadedCases, *, seed: int) -> PriorTrainingData:
    """Fit the prior's reader of FLAIR, if it has one; return the cases with what it reads."""
    if prior.reader is None or loaded.reader_cases is None:
        return loaded.data
    fit_flair_reader(prior.reader, loaded.reader_cases, seed=seed)
    return with_readings(prior, loaded)


def with_readings(prior: LesionLoadPrior, loaded: LoadedCases) -> PriorTrainingData:
    """Return the cases with what the prior's fitted reader reads; unchanged without a reader."""
    if prior.reader is None or loaded.reader_cases is None:
        return loaded.data
    return replace(loaded.data, readings=readings(prior.reader, loaded.reader_cases))
