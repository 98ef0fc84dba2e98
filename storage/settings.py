"""What a store is to hold, and where a trial keeps its files."""

from dataclasses import dataclass, field

from storage.layout import SESSIONS
from storage.trial.path_patterns import check_pattern

_ANAT = "sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}"
_PER_SESSION = ("flair", "t2", "gad", "net2")
_PER_SUBJECT = ("parcellation", "brain_mask")


@dataclass(frozen=True)
class TrialLayout:
    """Where a trial keeps each input, as patterns below its folder; by default as BIDS has it.

    In a pattern `{subject}` is a subject's label (BIDS: `sub-` stands before it) and `{session}`
    the session's, `sessions` being the trial's own labels for w000, w048 and w096 in that order.
    `participants` is the table of subjects, its columns set apart by `separator`; without a table
    (null) every subject with files is taken, its arm unknown. `subject_column` holds the label,
    with or without `sub-`; `arm_names` says what the trial calls an arm, where that is not its
    name here (`{IFN: avonex}`).
    """

    sessions: tuple[str, str, str] = SESSIONS
    participants: str | None = "participants.tsv"
    separator: str = "\t"
    subject_column: str = "participant_id"
    arm_column: str = "treatment_arm"
    trial_column: str = "trial"
    arm_names: dict[str, str] = field(default_factory=dict)
    flair: str = f"{_ANAT}*_FLAIR.nii*"
    t2: str = f"derivatives/lesions/{_ANAT}*_label-L_desc-T2_mask.nii*"
    gad: str = f"derivatives/lesions/{_ANAT}*_label-L_desc-Gad_mask.nii*"
    net2: str = f"derivatives/lesions/{_ANAT}*_label-L_desc-NET2_mask.nii*"
    parcellation: str = f"derivatives/synthseg/{_ANAT}*_desc-synthseg_dseg.nii*"
    brain_mask: str = f"derivatives/brainmask/{_ANAT}*_desc-brain_mask.nii*"

    def __post_init__(self) -> None:
        distinct = len(set(self.sessions)) == len(self.sessions) and all(self.sessions)
        _require(distinct, "sessions", "three labels that differ", self.sessions)
        _require(len(self.separator) == 1, "separator", "one character", repr(self.separator))
        for channel in (*_PER_SESSION, *_PER_SUBJECT):
            wrong = check_pattern(getattr(self, channel), session=channel in _PER_SESSION)
            if wrong:
                raise ValueError(f"{channel}: expected {wrong}.")


@dataclass(frozen=True)
class StoreSettings:
    """The size of a slab, how volumes get onto it, and how cases are split and stored.

    `slab` is (s, h, w) in voxels and `spacing` (s, h, w) in mm; the slab is axial. `resample` lets
    volumes of another spacing in (images linearly, masks nearest); without it they are refused.
    `split` gives the shares of train, val and test. `cases_per_shard` cases share one file.
    `brain_height` is where the slab's centre lies between the bottom (0) and the top (1) of a brain
    mask, if a subject has one: 0.55 has the lateral ventricles in the middle of the slab.
    `percentiles` of the foreground become -1 and 1; `apply_brain_mask` sets FLAIR outside a brain
    mask to -1, as in a skull-stripped image. Affines of one subject's files may differ by
    `affine_tolerance` mm at the corners of the volume, and their axes from the body's by
    `max_obliquity` degrees. `probability_masks` lets masks with values between 0 and 1 in, which
    become 1 from 0.5 on; without it they are refused.
    """

    slab: tuple[int, int, int]
    spacing: tuple[float, float, float]
    resample: bool
    split_fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    cases_per_shard: int = 32
    brain_height: float = 0.55
    percentiles: tuple[float, float] = (0.5, 99.5)
    apply_brain_mask: bool = True
    affine_tolerance: float = 0.1
    max_obliquity: float = 30.0
    probability_masks: bool = False
    layout: TrialLayout = field(default_factory=TrialLayout)

    def __post_init__(self) -> None:
        _require(min(self.slab) > 0, "store.slab", "three positive sizes (s, h, w)", self.slab)
        _require(min(self.spacing) > 0, "store.spacing", "three positive mm", self.spacing)
        _require(
            min(self.split_fractions) >= 0 and abs(sum(self.split_fractions) - 1) < 1e-9,
            "store.split_fractions",
            "shares of train, val and test that sum to 1",
            self.split_fractions,
        )
        _require(
            self.cases_per_shard > 0, "store.cases_per_shard", "1 or more", self.cases_per_shard
        )
        _require(
            0 < self.brain_height < 1, "store.brain_height", "a share in (0, 1)", self.brain_height
        )
        low, high = self.percentiles
        _require(
            0 <= low < high <= 100, "store.percentiles", "0 <= low < high <= 100", self.percentiles
        )
        _require(
            self.affine_tolerance > 0, "store.affine_tolerance", "mm above 0", self.affine_tolerance
        )
        _require(
            0 < self.max_obliquity < 45,
            "store.max_obliquity",
            "degrees between 0 and 45",
            self.max_obliquity,
        )


def _require(holds: bool, key: str, expected: str, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(f"{key}: expected {expected}, got {got}.")
