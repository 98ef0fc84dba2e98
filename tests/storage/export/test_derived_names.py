"""Names and links of a derivative follow the files of the trial, whatever these are called."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lesioncast.jobs import export
from storage import Store, TrialLayout, VisitSchedule
from storage.export.bids_names import bids_uri, derived_names
from tests.storage.convert.conversion import GEOMETRY, SETTINGS, converted
from tests.support import bids
from tests.support.bids_validator import bids_uris, dead_links, validator_reports

DEMO = Path(__file__).resolve().parents[3] / "jobs" / "configs" / "demo.yaml"
LABELS = dict(zip(bids.SESSIONS, ("1.0", "visit 2", "M24"), strict=True))


def rename(root: Path, change: Callable[[str], str]) -> None:
    """Rename the files and folders of a trial, from the leaves up."""
    for path in sorted(root.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(change(path.name)))


def with_entities(root: Path) -> TrialLayout:
    """Give each FLAIR entities of its own."""
    rename(root, lambda name: name.replace("w000_FLAIR", "w000_acq-2D_run-2_FLAIR"))
    rename(root, lambda name: name.replace("w048_FLAIR", "w048_acq-3D_rec-norm_run-1_FLAIR"))
    return TrialLayout()


def with_session_labels(root: Path) -> TrialLayout:
    """Call the sessions 01, 02 and 03."""
    for label, session in zip(("01", "02", "03"), bids.SESSIONS, strict=True):
        rename(root, lambda name, old=session, new=label: name.replace(f"ses-{old}", f"ses-{new}"))
    return TrialLayout(sessions=("01", "02", "03"))


def without_bids(root: Path) -> TrialLayout:
    """Move the FLAIR images to folders that are named by visits, with odd characters."""
    for session, label in LABELS.items():
        for name in ("sub-01", "sub-02"):
            target = root / "scans" / f"pat {name[4:]} [é#]" / label / "flair%20.nii.gz"
            target.parent.mkdir(parents=True)
            bids.path_of(root, name, session, "flair").rename(target)
    return TrialLayout(
        sessions=tuple(LABELS.values()),
        participants=None,
        flair="scans/{subject}/{session}/flair*.nii*",
    )


TRIALS: dict[str, tuple[Callable[[Path], TrialLayout], str, set[str]]] = {
    "entities": (
        with_entities,
        "sub-01",
        {
            "sub-01_ses-w000_acq-2D_run-2_space-orig_desc-normalised_FLAIR.nii.gz",
            "sub-01_ses-w048_acq-3D_rec-norm_run-1_space-orig_desc-normalised_FLAIR.nii.gz",
            "sub-01_ses-w048_acq-3D_rec-norm_run-1_space-orig_label-L_desc-NET2_mask.nii.gz",
            "sub-01_ses-w096_space-orig_label-L_desc-NET2_mask.nii.gz",
        },
    ),
    "session labels": (
        with_session_labels,
        "sub-01",
        {
            "sub-01_ses-01_space-orig_desc-normalised_FLAIR.nii.gz",
            "sub-01_ses-02_space-orig_desc-normalised_FLAIR.nii.gz",
            "sub-01_ses-02_space-orig_label-L_desc-NET2_mask.nii.gz",
            "sub-01_ses-03_space-orig_label-L_desc-NET2_mask.nii.gz",
        },
    ),
    "no BIDS": (
        without_bids,
        "sub-pat01",
        {
            "sub-pat01_ses-10_space-orig_desc-normalised_FLAIR.nii.gz",
            "sub-pat01_ses-visit2_space-orig_desc-normalised_FLAIR.nii.gz",
        },
    ),
}


@pytest.mark.parametrize("kind", TRIALS)
def test_an_export_names_files_by_their_sources_and_links_to_them(
    kind: str, tmp_path: Path
) -> None:
    harm, subject, expected = TRIALS[kind]
    trial = tmp_path / "tri al [1]"
    bids.write_trial(trial, 2, geometry=GEOMETRY)
    layout = harm(trial)
    store, _ = converted(trial, tmp_path / "store.zarr", settings=replace(SETTINGS, layout=layout))
    out = tmp_path / "out"
    flags = ["--store", str(store.path), "--subjects", subject, "--out", str(out)]
    channels = "w000/flair,w048/flair,w048/net2,w096/net2"
    assert export.main(["--config", str(DEMO), *flags, "--channels", channels]) == 0
    assert {path.name for path in out.rglob("*.nii.gz")} == expected
    assert len(bids_uris(out)) >= 2
    assert dead_links(out) == set()
    assert validator_reports(out) == {"own": []}


def test_a_moved_trial_is_named_by_the_user(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bids.write_trial(tmp_path / "bids", 2, geometry=GEOMETRY)
    store, _ = converted(tmp_path / "bids", tmp_path / "store.zarr")
    moved = (tmp_path / "bids").rename(tmp_path / "moved")
    flags = ["--config", str(DEMO), "--store", str(store.path), "--channels", "w048/flair"]
    assert export.main([*flags, "--out", str(tmp_path / "out"), "--bids", str(moved)]) == 0
    assert dead_links(tmp_path / "out") == set()
    assert "--bids" not in caplog.text
    assert export.main([*flags, "--out", str(tmp_path / "dead")]) == 0
    assert f"{tmp_path / 'bids'}: expected the folder of the trial" in caplog.text


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("names")
    bids.write_trial(folder / "bids", 2, geometry=GEOMETRY)
    return converted(folder / "bids", folder / "store.zarr")[0]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("a-1", "a_2", "a3"), ("a1", "a2", "a3")),
        (("m1", "m-1", "m2"), bids.SESSIONS),
        (("v1", "V-1", "v2"), bids.SESSIONS),
        (("--", "b", "c"), bids.SESSIONS),
    ],
)
def test_sessions_of_a_trial_without_bids_names_get_labels_that_bids_allows(
    store: Store, labels: tuple[str, str, str], expected: tuple[str, ...]
) -> None:
    sources = {f"{session}/flair": f"scans/1/{session}.nii" for session in bids.SESSIONS}
    case = replace(store.cases[0], sources=sources)
    names = derived_names(case, VisitSchedule(labels))
    assert tuple(names.sessions.values()) == expected


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("sub-01_ses-w048_acq-3D_space-T1w_desc-preproc_FLAIR.nii.gz", "acq-3D_"),
        ("sub-01_ses-w048_run-one_FLAIR.nii", ""),
        ("sub-01_ses-w048_site-4_FLAIR.nii", ""),
        ("sub-01_ses-w048_echo-1_acq-x_FLAIR.nii", "acq-x_echo-1_"),
    ],
)
def test_only_valid_entities_of_the_source_are_kept_in_the_order_of_bids(
    store: Store, name: str, kept: str
) -> None:
    case = replace(store.cases[0], sources={"w048/flair": name})
    path = derived_names(case, VisitSchedule()).path("w048", "mask", space="orig", desc="x")
    assert path.name == f"sub-01_ses-w048_{kept}space-orig_desc-x_mask.nii.gz"


def test_a_uri_has_no_character_that_uris_forbid() -> None:
    assert bids_uri("a b/é [1]#?%.nii") == "bids:raw:a%20b/%C3%A9%20%5B1%5D%23%3F%25.nii"
