"""BIDS names of files that are derived from a case; they follow its recorded source files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from storage.layout import CHANNELS, SESSIONS, VisitSchedule
from storage.store.case_table import Case

RAW_DATASET_LINK = "raw"  # name of the source data set in BIDS URIs of a derivative
# Entities of a source file that its derivatives keep, and those that a derivative sets, in the
# order of BIDS.
_SOURCE_ENTITIES = ("acq", "ce", "rec", "run", "echo", "part", "chunk")
_ORDER = ("acq", "ce", "rec", "run", "echo", "part", "space", "chunk", "label", "desc")
_INDICES = ("run", "echo", "chunk")  # entities whose values are numbers
# Characters that a BIDS URI takes as they are: those of a path in RFC 3986.
_PATH_CHARACTERS = "/-._~!$&'()*+,;=:@"


def bids_uri(path: str) -> str:
    """Return the BIDS URI of a file of the source data set, by its path below that data set."""
    return f"bids:{RAW_DATASET_LINK}:{quote(path, safe=_PATH_CHARACTERS)}"


@dataclass(frozen=True)
class DerivedNames:
    """Names of the files that are derived from one case."""

    #: BIDS name of the subject, such as sub-0001.
    subject: str
    #: Path of each source file below the trial's folder by its role, such as w048/flair.
    sources: Mapping[str, str]
    #: BIDS label of each session, by its name in the store.
    sessions: Mapping[str, str]

    def path(self, session: str, suffix: str, **entities: str) -> Path:
        """Return the path of an image below the root of the derivative.

        An example is sub-1/ses-2/anat/sub-1_ses-2_acq-3D_run-1_space-orig_desc-x_mask.nii.gz. It
        has the entities of the FLAIR of that session, and the given `entities`.
        """
        flair = self.sources.get(f"{session}/flair", "")
        source = {k: v for k, v in name_entities(flair).items() if k in _SOURCE_ENTITIES}
        values = source | entities
        label = self.sessions[session]
        parts = [self.subject, f"ses-{label}"]
        parts += [f"{key}-{values[key]}" for key in _ORDER if key in values]
        return Path(self.subject, f"ses-{label}", "anat", f"{'_'.join([*parts, suffix])}.nii.gz")

    def uri(self, name: str) -> str:
        """Return the BIDS URI of the source file of a role such as w048/flair."""
        return bids_uri(self.sources[name])


def derived_names(case: Case, visits: VisitSchedule) -> DerivedNames:
    """Return the names of what is derived from a case of a trial with that layout."""
    return DerivedNames(case.subject, case.sources, _session_labels(case.sources, visits))


def name_entities(path: str) -> dict[str, str]:
    """Return the entities with valid values in the name of a file, such as {"acq": "3D"}."""
    stem = PurePosixPath(path).name.removesuffix(".gz").removesuffix(".nii")
    pairs = (part.partition("-") for part in stem.split("_")[:-1])
    return {key: value for key, _, value in pairs if _is_valid(key, value)}


def _is_valid(key: str, value: str) -> bool:
    return re.fullmatch("[0-9]+" if key in _INDICES else "[0-9A-Za-z+]+", value) is not None


def _session_labels(sources: Mapping[str, str], visits: VisitSchedule) -> dict[str, str]:
    """Return the BIDS label of each session: that of its files, or else that of the trial.

    Labels of the trial lose the characters that BIDS does not allow. The names of the store are
    used where sessions would share a label.
    """
    of_trial = {session: re.sub("[^0-9A-Za-z]", "", visits.label(session)) for session in SESSIONS}
    of_files = {session: _label_of_files(sources, session) for session in SESSIONS}
    named = {session: of_files[session] or of_trial[session] for session in SESSIONS}
    store = {session: session for session in SESSIONS}
    # Windows and macOS do not tell names apart that differ in case only.
    for labels in (named, of_trial):
        if len({label.casefold() for label in labels.values() if label}) == len(SESSIONS):
            return labels
    return store


def _label_of_files(sources: Mapping[str, str], session: str) -> str | None:
    """Return the label of the session in the names of its files, the FLAIR first."""
    paths = (sources.get(f"{session}/{channel}", "") for channel in CHANNELS)
    return next((label for path in paths if (label := name_entities(path).get("ses"))), None)
