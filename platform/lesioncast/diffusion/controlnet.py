"""ControlNet of stage 2: a trainable copy of the encoder, conditioned on the patient's images.

Zhang et al. 2023, figure 3. It works in voxel space, so that the hint keeps the resolution of z_t.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.diffusion.blocks import slices_to_channels, zero_module
from lesioncast.diffusion.covariates import CovariateEmbedding, missing_covariates
from lesioncast.diffusion.lesion_load import BURDEN_FEATURES, LesionLoadPrior
from lesioncast.diffusion.settings.networks import ControlConfig, UNetConfig
from lesioncast.diffusion.unet import ControlNetOutput, Encoder, UNet
from lesioncast.diffusion.voxel_mlp import VoxelMLP, with_local_mean
from lesioncast.imaging.covariates import Covariate
from lesioncast.priors.flair_reader.reader import FlairReader


@dataclass(frozen=True)
class PatientEncoding:
    """Condition of b patients after encoding. It is the same for every t, arm and seed."""

    #: Hint that is added after the encoder's first layer, [b, width, h, w].
    features: Tensor
    #: Embedding of the lesion burden, [b, e].
    burden: Tensor | None
    #: Condition with local means, for the voxel MLP, [b, 2 * channels, s, h, w].
    voxels: Tensor | None
    #: Embedding of the covariates, [b, e].
    covariates: Tensor | None = None
    #: Features for the lesion load prior, [b, feature].
    lesion_load: Tensor | None = None
    #: Log density of a new-lesion voxel, for a model with a base map, [b, s, h, w].
    log_density: Tensor | None = None
    #: What the voxel MLP reads of `voxels`, in their place; see `ControlNet.read_voxels`.
    voxel_reading: Tensor | None = None

    def index_select(self, index: Tensor) -> "PatientEncoding":
        """Return the encodings of the rows `index` [n], in that order."""
        return PatientEncoding(*(part if part is None else part[index] for part in self._parts()))  # type: ignore[arg-type]

    def _parts(self) -> tuple[Tensor | None, ...]:
        return (
            self.features,
            self.burden,
            self.voxels,
            self.covariates,
            self.lesion_load,
            self.log_density,
            self.voxel_reading,
        )

    @staticmethod
    def cat(encodings: "Sequence[PatientEncoding]") -> "PatientEncoding":
        """Concatenate encodings of one model along the patients."""
        columns = zip(*(encoding._parts() for encoding in encodings), strict=True)
        return PatientEncoding(*(None if part[0] is None else torch.cat(part) for part in columns))  # type: ignore[arg-type]


def lesion_burden(condition: Tensor, masks: Sequence[int]) -> Tensor:
    """Return the lesion burden [b, channels, 3] of c_f [b, channels, s, h, w].

    The three features of a channel are a flag for its presence, the log of its amount, and the log
    of its number of lesions. For the channels `masks`, which are -1 / +1, the amount is the share
    of lesion voxels. For other channels it is the mean intensity, and the number is 0. A missing
    channel, which is all zeros, gives three zeros.
    """
    present = condition.flatten(2).any(2).to(condition.dtype)
    share = (condition.flatten(2).mean(2) + 1) / 2
    number = torch.zeros_like(share)
    if masks:
        number[:, masks] = euler_number(condition[:, masks] > 0).clamp(min=0).log1p().to(share)
    amount = (share.clamp(min=0) + 1e-5).log10().add(3)
    return torch.stack([present, present * amount, number], dim=2)


def euler_number(mask: Tensor) -> Tensor:
    """Return the Euler number [b, c] of masks [b, c, s, h, w] with 26-connectivity.

    It is the number of objects, minus tunnels, plus cavities. Lesions are convex or nearly so, and
    the Euler number is then the number of lesions.
    """
    # It is V - E + F - C of the union of closed voxels. A vertex, an edge or a face belongs to the
    # union if one of the voxels around it does. Each axis turns every cell into the cells of one
    # dimension less that it shares with its neighbour (sign kept) and itself (sign changed).
    signed = [(1, functional.pad(mask, (1, 1) * 3))]
    for axis in (2, 3, 4):
        size = mask.shape[axis] + 1
        own = [(sign, cells.narrow(axis, 0, size)) for sign, cells in signed]
        others = [cells.narrow(axis, 1, size) for _, cells in signed]
        shared = [(sign, cells | other) for (sign, cells), other in zip(own, others, strict=True)]
        signed = [*shared, *((-sign, cells) for sign, cells in own)]
    total = torch.zeros_like(signed[0][1], dtype=torch.int8)
    for sign, cells in signed:
        total.add_(cells.view(torch.int8), alpha=sign)
    return total.flatten(2).sum(2)


def build_lesion_load_prior(
    config: ControlConfig, unet: UNetConfig, covariates: Sequence[Covariate]
) -> LesionLoadPrior | None:
    """Return the untrained prior of a model, or None for a model without lesion loads."""
    if not unet.lesion_load_thresholds:
        return None
    spacing = config.flair_reader_spacing
    return LesionLoadPrior(
        config.condition,
        arms=unet.arms + 1,
        classes=unet.lesion_load_classes,
        covariates=covariates,
        reader=FlairReader(spacing) if spacing else None,
    )


def prior_features(
    prior: LesionLoadPrior, masks: Sequence[int], condition: Tensor, covariates: Tensor | None
) -> Tensor:
    """Return the prior's features [b, feature] of c_f [b, channels, s, h, w].

    The channels `masks` are masks. `covariates` [b, covariate] as in `patient_features`.
    """
    burden = lesion_burden(condition, masks)
    return prior.patient_features(burden, covariates, prior.read(condition))


class ControlNet(nn.Module):
    """Copy of the encoder that adds residuals to the frozen UNet (paper, section 2).

    The residuals pass through convolutions that start at zero. Covariates and lesion burden are
    added to the embedding of the copy. They describe the patient and therefore enter in stage 2
    only: one stage 1, the distribution given the arm, serves every choice of covariates.
    """

    def __init__(
        self, config: ControlConfig, unet: UNetConfig, covariates: Sequence[Covariate] = ()
    ) -> None:
        super().__init__()
        self.patch = unet.patch
        self.encoder = Encoder(unet)
        channels = config.channels * unet.slices * unet.patch**2
        widths = (channels, *config.hint_widths, unet.widths[0])
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(width_in, width_out, 3, padding=1), nn.SiLU()]
        self.hint = nn.Sequential(*layers[:-1])
        if config.zero_hint:
            zero_module(self.hint[-1])
        self.burden = (
            nn.Sequential(
                nn.Linear(BURDEN_FEATURES * config.channels, unet.embedding),
                nn.SiLU(),
                nn.Linear(unet.embedding, unet.embedding),
            )
            if config.burden
            else None
        )
        self.voxels = (
            VoxelMLP(2 * config.channels, config.voxel_mlp_width, embedding=unet.embedding)
            if config.voxel_mlp_width
            else None
        )
        self.zero_skips = nn.ModuleList(
            zero_module(nn.Conv2d(width, width, 1)) for width in unet.skip_widths()
        )
        self.zero_middle = zero_module(nn.Conv2d(unet.widths[-1], unet.widths[-1], 1))
        self.lesion_load_prior = build_lesion_load_prior(config, unet, covariates)
        self.masks = config.masks
        # Last: modules draw initial weights in order of creation, so that all other weights start
        # equal with and without covariates.
        self.covariates = CovariateEmbedding(covariates, unet.embedding) if covariates else None

    @classmethod
    def from_unet(
        cls, config: ControlConfig, unet: UNet, covariates: Sequence[Covariate] = ()
    ) -> "ControlNet":
        """Return a ControlNet whose encoder starts as a copy of the trained UNet's."""
        control = cls(config, unet.config, covariates)
        control.encoder.load_state_dict(unet.encoder.state_dict())
        return control

    def encode(
        self, condition: Tensor, covariates: Tensor | None = None, *, lesion_load: bool = True
    ) -> PatientEncoding:
        """Encode c_f [b, channels, s, h, w] and encoded covariates [b, covariate].

        The result is shared by all t, arms and seeds. Without `covariates` all are missing. Without
        `lesion_load` the prior's features are left out, which training does not need.
        """
        prior = self.lesion_load_prior if lesion_load else None
        burden = self.encode_burden(condition) if self.burden or prior else None
        return PatientEncoding(
            features=self.hint(slices_to_channels(condition, self.patch)),
            burden=self.burden(burden.flatten(1)) if self.burden and burden is not None else None,
            voxels=with_local_mean(condition) if self.voxels else None,
            covariates=self._embed_covariates(condition, covariates),
            lesion_load=prior.patient_features(burden, covariates, prior.read(condition))
            if prior and burden is not None
            else None,
        )

    def read_voxels(self, patient: PatientEncoding) -> PatientEncoding:
        """Return an encoding for sampling, with what the voxel MLP reads of the condition.

        Every step of every sample would read the same again.
        """
        if self.voxels is None or patient.voxels is None:
            return patient
        reading = self.voxels.read_features(patient.voxels)
        return replace(patient, voxels=None, voxel_reading=reading)

    def encode_burden(self, condition: Tensor) -> Tensor:
        """Return the lesion burden [b, channels, 3] of c_f [b, channels, s, h, w]."""
        return lesion_burden(condition, self.masks)

    def _embed_covariates(self, condition: Tensor, covariates: Tensor | None) -> Tensor | None:
        if self.covariates is None:
            return None
        if covariates is None:
            covariates = missing_covariates(self.covariates.covariates, condition)
        embedding: Tensor = self.covariates(covariates)
        return embedding

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        patient: PatientEncoding,
        lesion_load: Tensor | None = None,
    ) -> ControlNetOutput:
        """Return the residuals for z [b, 2, s, h, w], logsnr [b], arm [b] and lesion load [b]."""
        embedding = self.encoder.embedding(logsnr, arm, lesion_load)
        if patient.burden is not None:
            embedding = embedding + patient.burden
        if patient.covariates is not None:
            embedding = embedding + patient.covariates
        skips, middle = self.encoder(z, embedding, patient.features)
        return ControlNetOutput(
            skips=[zero(skip) for zero, skip in zip(self.zero_skips, skips, strict=True)],
            middle=self.zero_middle(middle),
            net2=self._voxel_log_odds(patient, embedding),
        )

    def _voxel_log_odds(self, patient: PatientEncoding, embedding: Tensor) -> Tensor | None:
        """Return the log odds of the voxel MLP [b, s, h, w], or None for a model without it."""
        if self.voxels is None:
            return None
        if patient.voxel_reading is not None:
            return self.voxels.from_reading(patient.voxel_reading, embedding).float()
        log_odds: Tensor = self.voxels(patient.voxels, embedding)
        return log_odds.float()
