"""Settings that shape the UNet and the ControlNet."""

import difflib
from dataclasses import dataclass

NUM_TARGETS = 2

# Images of a patient that exist before the outcome, as session/channel in the order of the paper.
CONDITION = (
    "w000/flair",
    "w000/t2",
    "w000/gad",
    "w048/flair",
    "w048/t2",
    "w048/gad",
    "w048/net2",
)


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet. The defaults are the paper's.

    Section 3 of the paper states the slices, six stages from 256 to 8 voxels, attention at 16 and
    8, and 589 M parameters with the ControlNet. The widths and blocks are not stated. The defaults
    are a layout with that number of parameters.
    """

    #: Slices of a volume.
    slices: int = 15
    #: Treatment arms, without the null arm.
    arms: int = 6
    #: Side of the square of voxels that is moved into channels before the first convolution.
    #: 1 is the paper's; more is faster on small machines.
    patch: int = 1
    #: Channels of each stage, from full resolution down.
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    #: Blocks per stage on the way down. The way up has one more.
    down_blocks: int = 2
    #: Stages with self-attention, counted from 0.
    attention_stages: tuple[int, ...] = (4, 5)
    #: Channels of an attention head.
    head_dim: int = 64
    #: Groups of each GroupNorm.
    groups: int = 32
    #: Hidden width of the `VoxelRefinementHead` of NET2. 0, as in the paper, leaves it out.
    voxel_head_width: int = 0
    #: Smallest number of NET2 voxels of each lesion load class above "no lesion". The
    #: configuration gives volumes (`lesion_load_mm3`), from which it follows for one voxel size.
    lesion_load_thresholds: tuple[int, ...] = ()
    #: Whether NET2's log odds start from a base map of each patient (see `base_map`).
    base_map: bool = False

    def __post_init__(self) -> None:
        uneven = [width for width in self.widths if width % self.groups]
        if uneven:
            raise ValueError(f"widths: expected multiples of groups={self.groups}, got {uneven}")
        rising = list(self.lesion_load_thresholds) == sorted(set(self.lesion_load_thresholds))
        if self.lesion_load_thresholds and not (rising and self.lesion_load_thresholds[0] == 1):
            raise ValueError(
                "lesion_load_thresholds: expected voxels that rise from 1, got "
                f"{list(self.lesion_load_thresholds)}; use for example [1, 10, 30, 100]"
            )
        if self.base_map and not self.lesion_load_thresholds:
            raise ValueError(
                "base_map: expected lesion_load_thresholds beside it, got none; the base map of a "
                "patient is scaled by the lesion voxels of a load class"
            )

    @property
    def folded_channels(self) -> int:
        """Return the channels of x after `slices_to_channels`."""
        return NUM_TARGETS * self.slices * self.patch**2

    @property
    def embedding(self) -> int:
        """Return the width of the embedding of noise level and arm."""
        return 4 * self.widths[0]

    @property
    def null_arm(self) -> int:
        """Return the row of the arm table that means "no arm given"."""
        return self.arms

    @property
    def lesion_load_classes(self) -> int:
        """Return the number of lesion load classes, including "no lesion"."""
        return len(self.lesion_load_thresholds) + 1

    def skip_widths(self) -> list[int]:
        """Return the widths of the encoder's skip tensors, first to last."""
        widths = [self.widths[0]]
        for stage, width in enumerate(self.widths):
            widths += [width] * self.down_blocks
            if stage < len(self.widths) - 1:
                widths.append(width)
        return widths


@dataclass(frozen=True)
class ControlConfig:
    """Settings of the condition c_f [b, channels, s, h, w] and of how it enters the networks."""

    #: Channels of c_f, in order. Those of baseline alone make the model of section 4.4.
    condition: tuple[str, ...] = CONDITION
    #: Hidden widths of the hint encoder (3x3 convolutions with SiLU between).
    hint_widths: tuple[int, ...] = ()
    #: Start the hint encoder's last convolution at zero.
    zero_hint: bool = True
    #: Add the lesion burden of each channel (volume and number of lesions) to the embedding.
    #: Normalised feature maps lose it, and small networks do not recover it in a short training.
    burden: bool = False
    #: Hidden width of the `VoxelMLP` that reads the condition voxel by voxel. 0 leaves it out.
    voxel_mlp_width: int = 0
    #: Size (s, h, w) in mm of the voxels whose FLAIR the lesion load prior reads; None if it reads
    #: none. The configuration's `flair_reader` sets it.
    flair_reader_spacing: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        for name in self.condition:
            if name not in CONDITION:
                near = difflib.get_close_matches(name, CONDITION, n=1, cutoff=0)
                raise ValueError(
                    f"condition: expected channels among {', '.join(CONDITION)}, which exist "
                    f"before the outcome, got {name}; nearest: {near[0]}"
                )
        if not self.condition or len(set(self.condition)) < len(self.condition):
            raise ValueError(
                "condition: expected one or more channels, each once, got "
                f"[{', '.join(self.condition)}]; name each channel once"
            )
        if self.flair_reader_spacing and not any("/flair" in name for name in self.condition):
            raise ValueError(
                "condition: expected a channel of FLAIR for the prior to read, got "
                f"[{', '.join(self.condition)}]; add w000/flair, or set flair_reader to false"
            )

    @property
    def channels(self) -> int:
        """Return the number of channels of c_f."""
        return len(self.condition)

    @property
    def masks(self) -> list[int]:
        """Return the indices of the channels that are masks."""
        names = enumerate(self.condition)
        return [channel for channel, name in names if not name.endswith("/flair")]
