"""Settings of the store and of the layout of a trial on disk."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from storage.layout import NOMINAL_DAYS, SESSIONS, VisitSchedule
from storage.trial.path_patterns import check_pattern

_SESSION = "sub-{subject}/ses-{session}"
_ANAT = f"{_SESSION}/anat/sub-{{subject}}_ses-{{session}}"
_PER_SESSION = ("flair", "t2", "gad", "net2")
_PER_SUBJECT = ("parcellation", "brain_mask")


@dataclass(frozen=True)
class TrialLayout:
    """Where a trial keeps its files, as patterns below its folder; the defaults are BIDS.

    A pattern holds `{subject}` (the subject's label, without the `sub-` of BIDS) and, for files of
    one session, `{session}` (the trial's own label of that session).
    """

    #: The trial's own labels of the baseline, the current session and the outcome, in that order.
    sessions: tuple[str, str, str] = SESSIONS
    #: Days on which these sessions are planned, counted from baseline.
    nominal_days: tuple[int, int, int] = NOMINAL_DAYS
    #: Table of subjects. With null every subject that has files is taken, with an unknown arm.
    participants: str | None = "participants.tsv"
    #: Character between the columns of that table.
    separator: str = "\t"
    #: Column with the subject's label, with or without `sub-`.
    subject_column: str = "participant_id"
    #: Column with the treatment arm.
    arm_column: str = "treatment_arm"
    #: Column with the name of the trial.
    trial_column: str = "trial"
    #: Columns with the days from baseline to the current session, and from there to the outcome.
    #: They are used where no dates are known.
    interval_columns: tuple[str, str] = ("days_to_current", "days_to_outcome")
    #: Names of arms in the table, mapped to the names in `arms`, for example `{IFN: avonex}`.
    arm_names: dict[str, str] = field(default_factory=dict)
    #: FLAIR image of a session; baseline and current session are required.
    flair: str = f"{_ANAT}*_FLAIR.nii*"
    #: Mask of the T2 lesions of a session.
    t2: str = f"derivatives/lesions/{_ANAT}*_label-L_desc-T2_mask.nii*"
    #: Mask of the gadolinium-enhancing lesions of a session.
    gad: str = f"derivatives/lesions/{_ANAT}*_label-L_desc-Gad_mask.nii*"
    #: Mask of the new and enlarging T2 lesions since the previous session.
    net2: str = f"derivatives/lesions/{_ANAT}*_label-L_desc-NET2_mask.nii*"
    #: FreeSurfer or SynthSeg labels of a subject, on any grid.
    parcellation: str = f"derivatives/synthseg/{_ANAT}*_desc-synthseg_dseg.nii*"
    #: Brain mask of a subject, on the grid of the current FLAIR.
    brain_mask: str = f"derivatives/brainmask/{_ANAT}*_desc-brain_mask.nii*"
    #: Tables with the date of each file (columns filename and acq_time), if there are any.
    scans: tuple[str, ...] = (
        f"{_SESSION}/sub-{{subject}}_ses-{{session}}_scans.tsv",
        "sub-{subject}/sub-{subject}*_scans.tsv",
    )
    #: Tables with the date of each session (columns session_id and acq_time), if there are any.
    session_tables: tuple[str, ...] = ("sub-{subject}/sub-{subject}_sessions.tsv",)

    def __post_init__(self) -> None:
        distinct = len(set(self.sessions)) == len(self.sessions) and all(self.sessions)
        _require(distinct, "sessions", "three different labels", self.sessions)
        rising = list(self.nominal_days) == sorted(set(self.nominal_days))
        _require(
            rising and self.nominal_days[0] == 0,
            "nominal_days",
            "three days that rise from 0, such as [0, 336, 672]",
            list(self.nominal_days),
        )
        _require(len(self.separator) == 1, "separator", "one character", repr(self.separator))
        for channel in (*_PER_SESSION, *_PER_SUBJECT):
            problem = check_pattern(getattr(self, channel), session=channel in _PER_SESSION)
            if problem:
                raise ValueError(f"{channel}: expected {problem}.")
        for key in ("scans", "session_tables"):
            for pattern in getattr(self, key):
                if problem := check_pattern(pattern, session=False):
                    raise ValueError(f"{key}: expected {problem}.")

    @property
    def visits(self) -> VisitSchedule:
        """Return the labels and nominal days of the sessions."""
        return VisitSchedule(self.sessions, self.nominal_days)


# The fields of StoreSettings that decide which voxels of an image become a case, and their values.
# A model reads only cases that agree with those of its training in all of them.
PREPARATION = ("slab", "spacing", "brain_height", "percentiles", "apply_brain_mask")


@dataclass(frozen=True)
class StoreSettings:
    """Settings of the store: size of a slab, preprocessing, splits and files."""

    #: Size of the axial slab in voxels (s, h, w).
    slab: tuple[int, int, int]
    #: Spacing of the slab in mm (s, h, w).
    spacing: tuple[float, float, float]
    #: Resample volumes of another spacing (images linearly, masks by the nearest voxel). Without
    #: it their subjects are excluded.
    resample: bool
    #: Shares of the splits train, val and test; they sum to 1.
    split_fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    #: Number of cases that share one file of each array.
    cases_per_shard: int = 32
    #: Height of the slab's centre between the bottom (0) and the top (1) of the brain mask, if a
    #: subject has one. At 0.55 the lateral ventricles lie in the middle of the slab.
    brain_height: float = 0.55
    #: Percentiles of the tissue's intensities that become -1 and 1.
    percentiles: tuple[float, float] = (0.5, 99.5)
    #: Set FLAIR outside the brain mask to -1, as in a skull-stripped image. Without it only the air
    #: becomes -1.
    apply_brain_mask: bool = True
    #: Largest distance in mm between the corners of two files of one subject.
    affine_tolerance: float = 0.1
    #: Largest angle in degrees between the axes of a file and those of the body.
    max_obliquity: float = 30.0
    #: Accept masks with values between 0 and 1 and threshold them at 0.5. Without it their
    #: subjects are excluded.
    probability_masks: bool = False
    #: Where the trial keeps its files.
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

    def for_patient(self) -> "StoreSettings":
        """Return the settings that prepare one patient as these prepare the subjects of a trial.

        The patient's files lie in the default layout. Sessions keep the trial's labels and days.
        """
        layout = TrialLayout(sessions=self.layout.sessions, nominal_days=self.layout.nominal_days)
        return replace(self, layout=layout)


def settings_from_json(record: Mapping[str, Any]) -> StoreSettings:
    """Return the settings that `dataclasses.asdict` turned into JSON.

    Raises TypeError or ValueError for other content.
    """
    layout = TrialLayout(**_lists_as_tuples(record["layout"]))
    return StoreSettings(**_lists_as_tuples(record) | {"layout": layout})


def _lists_as_tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
    }


def _require(holds: bool, key: str, expected: str, got: object) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(f"{key}: expected {expected}, got {got}.")
