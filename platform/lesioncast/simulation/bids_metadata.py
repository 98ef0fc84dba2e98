"""Descriptions, sidecars and tables of a simulated trial's BIDS dataset."""

import dataclasses
import json
from collections.abc import Iterable
from typing import Any

from lesioncast.arms import PAPER_ARMS
from lesioncast.imaging.regions import FREESURFER_IDS
from lesioncast.simulation.disease import TRIALS, Patient
from lesioncast.simulation.settings import SimulationSettings
from storage.trial.description import DESCRIPTION_FILE, SIMULATED_WITH
from storage.version import installed_version

# Version of the simulation: raise it when the same settings no longer give the same subjects.
GENERATOR = 1
# Settings that a fingerprint leaves out at their defaults.
_OPTIONAL = (
    "location_law",
    "lesion_sizes",
    "enlarging_share",
    "regional_propensity",
    "prone_places",
    "early_sign",
)
DERIVATIVES = {
    "lesions": "T2, gadolinium-enhancing, and new and enlarging T2 (NET2) lesions, as observed",
    "synthseg": "Regions by FreeSurfer id in the manner of SynthSeg, taken from the simulation",
    "truth": "True counterfactuals: the NET2 lesions of each period under every arm, by rank",
}

_BIDS_VERSION = "1.10.1"
_WEEKS = {"w000": 0, "w048": 48, "w096": 96}
_PAPER = "https://arxiv.org/abs/2508.07006"

_README = f"""\
A simulated multiple-sclerosis trial: no real patient is in it.

Anatomy comes from the ICBM152 2009a templates (as shipped with nilearn), moved and bent for each
subject. Lesions and treatment effects come from a structural causal model; under each arm its
activity rates and mean lesion counts are those of Table 1 of {_PAPER}.
Sessions are w000 (before treatment), w048 and w096. The NET2 mask of w048 shows what is new since
w000, that of w096 what is new since w048.

How well the past predicts the future is a setting here (predictability), so the ease of a task on
this data is no evidence about real disease.

derivatives/truth holds what no real trial can know: a rank map and a lesion count per arm for each
period. The NET2 mask under an arm is 0 < rank <= count. No model may read it.
"""

_PART_README = """\
{}.

Part of a simulated trial: no real patient is in it. The files follow from the settings in the
trial's dataset_description.json; ../../README says how.
"""

_COLUMNS = {
    "age": {"Description": "Age at w000", "Units": "year"},
    "sex": {"Description": "Sex", "Levels": {"F": "female", "M": "male"}},
    "disease_duration": {"Description": "Time since first symptoms at w000", "Units": "year"},
    "edss": {"Description": "Expanded Disability Status Scale at w000 (0 to 10)"},
    "relapses": {"Description": "Relapses in the two years before w000"},
    "treatment_arm": {
        "Description": "Arm to which the participant was assigned at w000",
        "Levels": {arm.name: f"efficacy: {arm.efficacy}" for arm in PAPER_ARMS},
    },
    "trial": {
        "Description": "Trial that enrolled the participant; scanner contrast depends on it",
        "Levels": {name: f"simulated after {name}" for name in TRIALS},
    },
}

_SESSION_COLUMNS = {
    "weeks": {"Description": "Time since assignment to the arm", "Units": "week"},
    "age": {"Description": "Age at the session", "Units": "year"},
}

# Sidecars apply to every file below them with the same suffix and entities (BIDS inheritance).
_SIDECARS = {
    "lesions/desc-T2_mask.json": {
        "Type": "Lesion",
        "Description": "T2-hyperintense lesions at the session",
    },
    "lesions/desc-Gad_mask.json": {
        "Type": "Lesion",
        "Description": "Gadolinium-enhancing lesions at the session",
    },
    "lesions/desc-NET2_mask.json": {
        "Type": "Lesion",
        "Description": "T2 lesions that are new or enlarging since the previous session",
    },
    "synthseg/desc-synthseg_dseg.json": {"Description": "Regions by FreeSurfer id"},
    "truth/desc-ranks_dseg.json": {
        "Description": "Rank of each possible new lesion since the previous session; an arm shows "
        "those with rank <= LesionCounts[arm]",
    },
}

_ACQUISITION = {"Modality": "MR", "MRAcquisitionType": "2D", "SkullStripped": True}
_HARDWARE = (
    "Manufacturer",
    "ManufacturersModelName",
    "DeviceSerialNumber",
    "StationName",
    "SoftwareVersions",
    "ReceiveCoilName",
    "ReceiveCoilActiveElements",
    "MatrixCoilMode",
    "CoilCombinationMethod",
    "PulseSequenceType",
    "SequenceName",
    "PulseSequenceDetails",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
)


def fingerprint(settings: SimulationSettings) -> dict[str, Any]:
    """Return the settings that determine each subject.

    Trials that differ only in the number of subjects have the same fingerprint.
    """
    values = dataclasses.asdict(settings) | {"generator": GENERATOR}
    del values["subjects"]
    # Older trials were written without these settings and equal those with their defaults.
    for field in dataclasses.fields(settings):
        if field.name in _OPTIONAL and values[field.name] == field.default:
            del values[field.name]
    # Through JSON, so that the result equals a stored fingerprint: tuples become lists.
    as_stored: dict[str, Any] = json.loads(json.dumps(values))
    return as_stored


def shared_files(settings: SimulationSettings) -> dict[str, str]:
    """Return the files about the whole trial: path below its root -> content.

    dataset_description.json comes last, so its presence shows that the others are complete.
    """
    derivatives: dict[str, str] = {}
    for name, purpose in DERIVATIVES.items():
        derivatives[f"derivatives/{name}/README"] = _PART_README.format(purpose)
        derivatives[f"derivatives/{name}/{DESCRIPTION_FILE}"] = _derivative(name, purpose)
    for sidecar, content in _SIDECARS.items():
        derivatives[f"derivatives/{sidecar}"] = _json({"SpatialReference": "orig"} | content)
    return {
        "README": _README,
        "FLAIR.json": _json(_ACQUISITION | dict.fromkeys(_HARDWARE, "none (simulated)")),
        "participants.json": _json(_COLUMNS),
        "sessions.json": _json(_SESSION_COLUMNS),
        **derivatives,
        "derivatives/synthseg/desc-synthseg_dseg.tsv": _region_table(),
        DESCRIPTION_FILE: _json(
            {
                "Name": "Simulated multiple-sclerosis trial",
                "BIDSVersion": _BIDS_VERSION,
                "DatasetType": "raw",
                "License": "CC0",
                "GeneratedBy": [_generator("lesioncast")],
                "ReferencesAndLinks": [_PAPER],
                SIMULATED_WITH: fingerprint(settings),
            }
        ),
    }


def participant_table(rows: Iterable[tuple[str, Patient]]) -> str:
    """Return the content of participants.tsv."""
    lines = ["\t".join(["participant_id", *_COLUMNS])]
    for name, patient in rows:
        values = patient.covariates() | {"treatment_arm": patient.arm, "trial": patient.trial}
        lines.append("\t".join([name, *(str(values[column]) for column in _COLUMNS)]))
    return "\n".join(lines) + "\n"


def session_table(age: float) -> str:
    """Return the content of sessions.tsv for a subject who is `age` years old at w000."""
    lines = ["session_id\tweeks\tage"]
    for session, weeks in _WEEKS.items():
        lines.append(f"ses-{session}\t{weeks}\t{age + weeks * 7 / 365.25:.1f}")
    return "\n".join(lines) + "\n"


def _region_table() -> str:
    """Return the table of FreeSurfer ids and region names."""
    names: dict[int, str] = {}
    for name, (left, right) in FREESURFER_IDS.items():
        names |= {left: name} if left == right else {left: f"left {name}", right: f"right {name}"}
    rows = [f"{index}\t{names[index]}" for index in sorted(names)]
    return "\n".join(["index\tname", *rows]) + "\n"


def _derivative(name: str, purpose: str) -> str:
    """Return the dataset_description.json of a derivative."""
    return _json(
        {
            "Name": purpose,
            "BIDSVersion": _BIDS_VERSION,
            "DatasetType": "derivative",
            "License": "CC0",
            "GeneratedBy": [_generator(name)],
            "SourceDatasets": [{"URL": "../../"}],
        }
    )


def _generator(name: str) -> dict[str, Any]:
    """Return the GeneratedBy entry with the installed version."""
    return {"Name": name, "Version": installed_version(), "Description": "Simulated by lesioncast"}


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
