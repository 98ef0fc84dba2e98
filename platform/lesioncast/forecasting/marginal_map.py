"""Compute where the networks expect lesions, from x_hat at pure noise, without sampling.

At pure noise z_t says nothing of the sample, so that x_hat is the networks' mean of x given arm,
images and lesion load: (x_hat + 1) / 2 is the probability of a lesion at each voxel. Its mean over
the load classes, weighted by the prior's probabilities, is the marginal probability. z_t is set to
its mean, 0, so that the map has no Monte Carlo error, where a share of 16 samples has steps of 6 %.
Trained networks depend a little on the noise that they are given: on the demo another draw moves
the log likelihood of a case by about 1 nat, and 0 does as well on average.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lesioncast.arrays import Float32s
from lesioncast.bundle.bundle import Bundle
from lesioncast.diffusion.controlnet import PatientEncoding
from lesioncast.diffusion.guidance import BatchCondition
from lesioncast.diffusion.model import LesionDiffusion
from lesioncast.diffusion.objective import NET2
from lesioncast.diffusion.precision import autocast
from lesioncast.diffusion.schedule import logsnr_at
from lesioncast.diffusion.settings.networks import NUM_TARGETS
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.forecasting.encoding import PatientEncoder
from lesioncast.forecasting.sampling import (
    Batch,
    BatchSampler,
    ConditioningArrays,
    EnsembleRequest,
    Read,
    SampleBatch,
)

PredictMap = Callable[[ConditioningArrays, int], Float32s]
"""Computes the probability of a lesion at each voxel [s, h, w] from a case's input and an arm."""

# A load class with less than this share of P(active) is left out: it changes the map by less.
LEAST_SHARE = 0.01


def make_map_predictor(bundle: Bundle, encode: PatientEncoder) -> PredictMap:
    """Return a function that computes marginal maps: the mean over the bundle's members.

    `encode` has the same bundle, whose networks are on its device.
    """
    sampler = bundle.config.sampler

    def predict(inputs: ConditioningArrays, arm: int) -> Float32s:
        maps = [
            marginal_map(member.model, patient, arm, sampler)
            for member, patient in zip(bundle.members, encode(inputs), strict=True)
        ]
        probability: Float32s = torch.stack(maps).mean(0).cpu().numpy()
        return probability

    return predict


class MappingSampler:
    """Sampler of batches that also computes the map of every request in a batch.

    A request whose samples lie in two batches has its map computed twice, to the same bits.
    """

    def __init__(self, sampler: BatchSampler, read: Read, predict: PredictMap) -> None:
        self._sampler, self._read, self._predict = sampler, read, predict

    def __call__(self, batch: Batch) -> SampleBatch:
        """Sample a batch and return its masks, lesion counts, expectations and maps."""
        return replace(self._sampler(batch), maps=self.maps(sample.request for sample in batch))

    def maps(self, requests: Iterable[EnsembleRequest]) -> dict[EnsembleRequest, Float32s]:
        """Return the map of each request."""
        distinct = dict.fromkeys(requests)
        inputs = {request.model_input: None for request in distinct}
        arrays = {key: self._read(key) for key in inputs}
        return {
            request: self._predict(arrays[request.model_input], request.arm) for request in distinct
        }


@torch.no_grad()
def marginal_map(
    model: LesionDiffusion, patient: PatientEncoding, arm: int, sampler: SamplerConfig
) -> Tensor:
    """Return the probability of a lesion at each voxel under an arm, [s, h, w].

    `patient` is one row. For a model with lesion loads the map is
    sum over k of p(load k | arm, patient) p(lesion at the voxel | load k, arm, patient), with one
    row of a forward pass for each class k that has lesions and is not very unlikely. Guidance and
    precision are those of `sampler`.
    """
    logits = model.lesion_load_logits(patient, arm)
    device = patient.features.device
    if logits is None:
        weights, loads = torch.ones(1, device=device), None
    else:
        # Class 0 has no lesions, so it adds nothing.
        of_classes = logits.softmax(0)[1:]
        kept = of_classes >= LEAST_SHARE * of_classes.sum()
        weights = of_classes[kept] * (of_classes.sum() / of_classes[kept].sum())
        loads = 1 + torch.nonzero(kept).flatten()
    rows = len(weights)
    batch = BatchCondition(
        patient.index_select(torch.zeros(rows, dtype=torch.long, device=device)),
        torch.full((rows,), arm, device=device),
        loads,
        # The mean of the class: the map then expects the mean volume of the samples.
        None if loads is None or model.base_map is None else model.base_map.mean_voxels(loads),
    )
    shape = spatial_shape(model, patient)
    z = torch.zeros(rows, NUM_TARGETS, *shape, device=device)
    logsnr = logsnr_at(torch.ones(rows, device=device), model.config.schedule)
    with autocast(sampler.precision, device):
        x_hat = model.encoded_denoiser(batch, sampler, spatial_shape=shape)(z, logsnr)
    return torch.einsum("k,kshw->shw", weights, (x_hat[:, NET2] + 1) / 2)


def spatial_shape(model: LesionDiffusion, patient: PatientEncoding) -> tuple[int, int, int]:
    """Return the size (s, h, w) of the images that `patient` was encoded from."""
    height, width = patient.features.shape[2:]
    unet = model.config.unet
    return unet.slices, height * unet.patch, width * unet.patch
