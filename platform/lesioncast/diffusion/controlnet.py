"""The ControlNet of stage 2: a trainable copy of the encoder that sees the patient's images.

Zhang et al. 2023, figure 3, in voxel space: the hint keeps the resolution of z_t.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesioncast.diffusion.blocks import slices_to_channels, zero_module
from lesioncast.diffusion.covariates import CovariateEmbedding, missing_covariates
from lesioncast.diffusion.lesion_load import LesionLoadPrior
from lesioncast.diffusion.unet import ControlNetOutput, Encoder, UNet, UNetConfig
from lesioncast.diffusion.voxel_mlp import VoxelMLP, with_local_mean
from lesioncast.imaging.covariates import Covariate

# What is known of a patient when w096 is forecast, as session/channel in the order of the paper.
CONDITION = (
    "w000/flair",
    "w000/t2",
    "w000/gad",
    "w048/flair",
    "w048/t2",
    "w048/gad",
    "w048/net2",
)
BURDEN_FEATURES = 3  # numbers a channel


@dataclass(frozen=True)
class ControlConfig:
    """What the condition c_f [b, channels, s, h, w] is and how it enters.

    `condition` names its channels in order; those of w000 alone make the counterfactual model
    (section 4.4). `hint_widths` are the hidden widths of the hint encoder (3x3 convolutions, SiLU
    between); its last convolution starts at zero where `zero_hint`. `burden` adds how much lesion
    each condition channel shows, and in how many pieces, to the copy's embedding: normalised
    feature maps lose that, and small networks do not recover it in a short training. `voxels` is
    the width of a `VoxelPerceptron` that reads the condition voxel by voxel; 0 leaves it out.
    """

    condition: tuple[str, ...] = CONDITION
    hint_widths: tuple[int, ...] = ()
    zero_hint: bool = True
    burden: bool = False
    voxel_mlp_width: int = 0

    def __post_init__(self) -> None:
        for name in self.condition:
            if name not in CONDITION:
                near = difflib.get_close_matches(name, CONDITION, n=1, cutoff=0)
                raise ValueError(
                    f"condition: expected channels among {', '.join(CONDITION)}, which are known "
                    f"when w096 is forecast; got {name}; nearest: {near[0]}"
                )
        if not self.condition or len(set(self.condition)) < len(self.condition):
            raise ValueError(
                "condition: expected one channel or more, each once, got "
                f"[{', '.join(self.condition)}]; name each channel once"
            )

    @property
    def channels(self) -> int:
        """Channels of c_f."""
        return len(self.condition)

    @property
    def masks(self) -> list[int]:
        """Which of them are masks."""
        return [row for row, name in enumerate(self.condition) if not name.endswith("/flair")]


@dataclass(frozen=True)
class PatientEncoding:
    """What the condition becomes once per patient: it depends on no t, arm or seed."""

    features: Tensor
    burden: Tensor | None
    voxels: Tensor | None
    covariates: Tensor | None = None
    load: Tensor | None = None

    def index_select(self, index: Tensor) -> "PatientEncoding":
        """The hint of some rows, in the order of `index` [n]."""
        return PatientEncoding(*(part if part is None else part[index] for part in self._parts()))  # type: ignore[arg-type]

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.features, self.burden, self.voxels, self.covariates, self.load

    @staticmethod
    def cat(hints: "Sequence[PatientEncoding]") -> "PatientEncoding":
        """Hints of one kind, row after row."""
        columns = zip(*(hint._parts() for hint in hints), strict=True)
        return PatientEncoding(*(None if part[0] is None else torch.cat(part) for part in columns))  # type: ignore[arg-type]


def lesion_burden(condition: Tensor, masks: Sequence[int]) -> Tensor:
    """[b, channels, 3] from c_f [b, channels, s, h, w]: present or null, and the logs of how much
    and of how many.

    Of the channels `masks`, which are -1 / +1, that is the share of lesion voxels and the number of
    lesions; of others it is the mean and 0. A null channel gives three zeros.
    """
    present = condition.flatten(2).any(2).to(condition.dtype)
    share = (condition.flatten(2).mean(2) + 1) / 2
    number = torch.zeros_like(share)
    if masks:
        number[:, masks] = euler_number(condition[:, masks] > 0).clamp(min=0).log1p().to(share)
    much = (share.clamp(min=0) + 1e-5).log10().add(3)
    return torch.stack([present, present * much, number], dim=2)


def euler_number(mask: Tensor) -> Tensor:
    """Objects minus tunnels plus cavities of masks [b, c, s, h, w], touching at corners, [b, c].

    V - E + F - C of the union of closed voxels: a vertex, edge or face is there where one of the
    voxels around it is. For lesions, which are convex or nearly so, that is their number.
    """
    signed = [(1, functional.pad(mask, (1, 1) * 3))]
    for axis in (2, 3, 4):
        size = mask.shape[axis] + 1
        own = [(sign, cells.narrow(axis, 0, size)) for sign, cells in signed]
        others = [cells.narrow(axis, 1, size) for _, cells in signed]
        shared = [(sign, cells | other) for (sign, cells), other in zip(own, others, strict=True)]
        signed = [*shared, *((-sign, cells) for sign, cells in own)]
    total = torch.zeros_like(signed[0][1], dtype=torch.int8)
    for sign, cells in signed:
        total += sign * cells.to(torch.int8)
    return total.flatten(2).sum(2)


class ControlNet(nn.Module):
    """A copy of the encoder whose outputs reach the frozen UNet through zero convolutions (paper,
    section 2).

    Covariates join the copy's embedding, as the burden does. They describe the patient, so they
    belong to stage 2: stage 1 stays the distribution given the arm, one for all choices of them.
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
        self.zero_skips = nn.ModuleList(zero_module(nn.Conv2d(w, w, 1)) for w in unet.skip_widths())
        self.zero_middle = zero_module(nn.Conv2d(unet.widths[-1], unet.widths[-1], 1))
        self.load_prior = (
            LesionLoadPrior(
                BURDEN_FEATURES * config.channels,
                arms=unet.arms + 1,
                classes=unet.lesion_load_classes,
                covariates=covariates,
            )
            if unet.lesion_load_thresholds
            else None
        )
        self.masks = config.masks
        # Last, so that all other weights begin the same with and without covariates.
        self.covariates = CovariateEmbedding(covariates, unet.embedding) if covariates else None

    @classmethod
    def from_unet(
        cls, config: ControlConfig, unet: UNet, covariates: Sequence[Covariate] = ()
    ) -> "ControlNet":
        """A ControlNet whose encoder starts from the trained UNet's."""
        control = cls(config, unet.config, covariates)
        control.encoder.load_state_dict(unet.encoder.state_dict())
        return control

    def encode(self, condition: Tensor, covariates: Tensor | None = None) -> PatientEncoding:
        """The hint of c_f [b, channels, s, h, w] and of encoded covariates [b, covariate].

        Computed once, shared over t, arms and seeds. No covariates are the null ones: all absent.
        """
        burden = self.burden_of(condition) if self.burden or self.load_prior else None
        return PatientEncoding(
            self.hint(slices_to_channels(condition, self.patch)),
            self.burden(burden.flatten(1)) if self.burden and burden is not None else None,
            with_local_mean(condition) if self.voxels else None,
            self._embedded(condition, covariates),
            self.load_prior.patient_features(burden, covariates)
            if self.load_prior and burden is not None
            else None,
        )

    def burden_of(self, condition: Tensor) -> Tensor:
        """As the function, of c_f."""
        return lesion_burden(condition, self.masks)

    def _embedded(self, condition: Tensor, covariates: Tensor | None) -> Tensor | None:
        if self.covariates is None:
            return None
        if covariates is None:
            covariates = missing_covariates(self.covariates.covariates, condition)
        embedded: Tensor = self.covariates(covariates)
        return embedded

    def forward(
        self,
        z: Tensor,
        logsnr: Tensor,
        arm: Tensor,
        hint: PatientEncoding,
        load: Tensor | None = None,
    ) -> ControlNetOutput:
        """What to add to the UNet's skips and middle for z [b, 2, s, h, w]."""
        embedding = self.encoder.embedding(logsnr, arm, load)
        if hint.burden is not None:
            embedding = embedding + hint.burden
        if hint.covariates is not None:
            embedding = embedding + hint.covariates
        skips, middle = self.encoder(z, embedding, hint.features)
        return ControlNetOutput(
            [zero(skip) for zero, skip in zip(self.zero_skips, skips, strict=True)],
            self.zero_middle(middle),
            self.voxels(hint.voxels, embedding).float() if self.voxels else None,
        )
