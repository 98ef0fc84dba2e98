"""Dates of acquisition: sessions in the wrong order are refused, the days between them are stored.

Every claim goes through a conversion of a small trial.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from storage import Store, VisitSchedule, open_store
from storage.convert.summary import summarise
from storage.layout import SESSIONS
from storage.preprocess.visits import Intervals
from storage.qc.measure import measure_case
from storage.settings import TrialLayout
from storage.trial.dates import parse_acquisition_time
from tests.storage.convert.conversion import GEOMETRY, SETTINGS, converted
from tests.support import bids

IN_ORDER = ("2015-03-02T09:30:00", "2016-02-01T11:00:00", "2017-01-02T08:15:00")
SWAPPED = (IN_ORDER[1], IN_ORDER[0], IN_ORDER[2])
LABELS = ("m00", "m12", "m24")
KINDS = pytest.mark.parametrize("kind", ["scans", "subject scans", "sessions", "sidecar"])


def flair(root: Path, session: str) -> Path:
    return bids.path_of(root, "sub-01", session, "flair")


def state(root: Path, kind: str, dates: tuple[str, ...]) -> None:
    """State the dates of the sessions of sub-01 in files of that kind."""
    folder = root / "sub-01"
    for session, text in zip(SESSIONS, dates, strict=True):
        image = flair(root, session)
        if kind == "scans":
            table = folder / f"ses-{session}/sub-01_ses-{session}_scans.tsv"
            table.write_text(f"filename\tacq_time\nanat/{image.name}\t{text}\n")
        if kind == "sidecar":
            sidecar = image.with_name(image.name.replace(".nii.gz", ".json"))
            sidecar.write_text(json.dumps({"EchoTime": 0.1, "AcquisitionDateTime": text}))
    if kind == "subject scans":
        rows = (
            f"ses-{session}/anat/{flair(root, session).name}\t{text}\n"
            for session, text in zip(SESSIONS, dates, strict=True)
        )
        (folder / "sub-01_scans.tsv").write_text("filename\tacq_time\n" + "".join(rows))
    if kind == "sessions":
        rows = (f"ses-{s}\t{text}\n" for s, text in zip(SESSIONS, dates, strict=True))
        (folder / "sub-01_sessions.tsv").write_text("session_id\tacq_time\n" + "".join(rows))


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """Return a trial of two subjects without dates."""
    bids.write_trial(tmp_path / "bids", 2, geometry=GEOMETRY)
    return tmp_path / "bids"


def convert(trial: Path) -> Store:
    return converted(trial, trial.parent / "s.zarr")[0]


def notes(store: Store) -> tuple[str, ...]:
    return store.case("sub-01").notes


@KINDS
def test_sessions_in_the_wrong_order_exclude_the_subject_alone(trial: Path, kind: str) -> None:
    state(trial, kind, SWAPPED)
    store = convert(trial)
    assert [case.subject for case in store.cases] == ["sub-02"]
    (excluded,) = store.table.excluded
    assert (excluded.subject, excluded.kind) == ("sub-01", "sessions out of order")
    assert "expected w000 before w048, got 2016-02-01T11:00:00 (sub-01/" in excluded.reason
    assert " and 2015-03-02T09:30:00 (sub-01/" in excluded.reason


@KINDS
def test_the_days_between_sessions_follow_from_dates(trial: Path, kind: str) -> None:
    state(trial, kind, IN_ORDER)
    store = convert(trial)
    assert store.case("sub-01").intervals == Intervals(336, 336)
    assert store.case("sub-02").intervals == Intervals(None, None)  # nominal days are not invented
    assert notes(store) == ()


@pytest.mark.parametrize(
    "dates",
    [
        ("1867-03-02", "1868-02-01", "1869-01-01"),  # shifted, so that nobody can be recognised
        ("20150302", "20160201", "20170102"),  # DICOM
        ("20150302093000.250000", "20160201110000", "20170102"),
        ("2015-03-02T09:30:00.1234Z", "2016-02-01T11:00:00+02:00", "2017-01-02T08:15"),
    ],
)
def test_dates_are_read_as_bids_and_dicom_write_them(trial: Path, dates: tuple[str, ...]) -> None:
    state(trial, "scans", dates)
    assert convert(trial).case("sub-01").intervals.days_to_current == 336


@pytest.mark.parametrize(
    ("rows", "days"),
    [
        # The FLAIR of the layout is a processed copy; the table names files of the scanner.
        ({"T1w": "2014-01-01", "acq-raw_FLAIR": "2015-03-02"}, 336),
        ({"acq-raw_FLAIR": "n/a", "T1w": "2015-03-02", "T2w": "2015-03-05"}, 336),
    ],
)
def test_a_table_that_does_not_name_the_flair_dates_its_visit(
    trial: Path, rows: dict[str, str], days: int
) -> None:
    state(trial, "scans", ("n/a", "2016-02-01", "n/a"))
    lines = [f"anat/sub-01_ses-w000_{name}.nii.gz\t{text}\n" for name, text in rows.items()]
    table = trial / "sub-01/ses-w000/sub-01_ses-w000_scans.tsv"
    table.write_text("filename\tacq_time\n" + "".join(lines))
    assert convert(trial).case("sub-01").intervals.days_to_current == days


def test_an_outcome_with_masks_alone_has_a_date_too(trial: Path) -> None:
    state(trial, "sessions", IN_ORDER)
    flair(trial, "w096").unlink()
    assert convert(trial).case("sub-01").intervals == Intervals(336, 336)


def test_shifted_dates_of_one_kind_of_file_may_stand_beside_real_ones(trial: Path) -> None:
    state(trial, "scans", ("1867-03-02", "1868-02-01", "1869-01-02"))
    state(trial, "sidecar", IN_ORDER)
    store = convert(trial)
    assert notes(store) == ()
    assert store.case("sub-01").intervals == Intervals(336, 336)


def test_real_dates_of_different_files_are_compared_where_no_file_has_both(trial: Path) -> None:
    state(trial, "scans", ("2016-02-01", "n/a", "n/a"))
    state(trial, "sessions", ("n/a", "2015-03-02", "n/a"))
    assert "sub-01" not in {case.subject for case in convert(trial).cases}


def test_the_order_within_one_day_follows_from_the_times(trial: Path) -> None:
    state(trial, "scans", ("2015-03-02T11:00:00", "2015-03-02T10:00:00", "n/a"))
    assert convert(trial).table.excluded[0].kind == "sessions out of order"


@pytest.mark.parametrize(
    ("dates", "sentence"),
    [
        (("2015-03-02", "2015-03-02", "n/a"), "expected w000 and w048 on different days, got 2015"),
        (
            ("02/03/2015", "2016-02-01", "n/a"),
            "expected a date such as 2015-03-02T09:30:00, got 02",
        ),
        (("2015-02-30", "2016-02-01", "n/a"), "got 2015-02-30 (sub-01/ses-w000/sub-01_ses-w000_sc"),
        (("2015", "2016-02-01", "n/a"), "got 2015 (sub-01/ses-w000/sub-01_ses-w000_scans.tsv)"),
    ],
)
def test_doubtful_dates_are_shown_and_give_no_interval(
    trial: Path, dates: tuple[str, ...], sentence: str
) -> None:
    state(trial, "scans", dates)
    store = convert(trial)
    assert store.case("sub-01").intervals == Intervals(None, None)
    assert sentence in notes(store)[0]
    assert any(sentence in line for line in summarise(store.table))
    assert any(sentence in flag for flag in measure_case(store, 0, store.read(0)).flags)


def test_files_that_disagree_about_a_date_are_shown(trial: Path) -> None:
    state(trial, "scans", IN_ORDER)
    state(trial, "sessions", (IN_ORDER[0], "2016-02-08", IN_ORDER[2]))
    sentences = notes(convert(trial))
    assert (
        "expected one date of w048, got 2016-02-01T11:00:00 (sub-01/ses-w048/"
        "sub-01_ses-w048_scans.tsv) and 2016-02-08 (sub-01/sub-01_sessions.tsv); correct one"
    ) in sentences


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00", b"[1]", b"{", b"[" * 100_000])
def test_an_unreadable_sidecar_is_shown_and_stops_nobody(trial: Path, content: bytes) -> None:
    flair(trial, "w048").with_name("sub-01_ses-w048_FLAIR.json").write_bytes(content)
    store = convert(trial)
    assert len(store.cases) == 2
    assert "expected dates in sub-01/ses-w048/anat/sub-01_ses-w048_FLAIR.json" in notes(store)[0]


def test_a_changed_date_is_noticed(trial: Path) -> None:
    state(trial, "sessions", IN_ORDER)
    convert(trial)
    _, builder = converted(trial, trial.parent / "s.zarr")
    assert builder.prepared == []
    state(trial, "sessions", (*IN_ORDER[:2], "2017-03-06"))
    store, builder = converted(trial, trial.parent / "s.zarr")
    assert builder.prepared == ["sub-01"]
    assert store.case("sub-01").intervals == Intervals(336, 399)
    converted(trial, trial.parent / "fresh.zarr")
    one, other = (trial.parent / name / "cases.json" for name in ("s.zarr", "fresh.zarr"))
    assert one.read_text().count("399") == other.read_text().count("399") == 1


def test_days_come_from_the_table_where_no_dates_are_known(trial: Path) -> None:
    layout = TrialLayout(interval_columns=("to_m12", "to_m24"))
    (trial / "participants.tsv").write_text(
        "participant_id\tage\ttreatment_arm\tto_m12\tto_m24\n"
        "sub-01\t30\tplacebo\t350.5\tn/a\nsub-02\t31\tavonex\t-3\tsoon\n"
    )
    store, _ = converted(trial, trial.parent / "s.zarr", settings=replace(SETTINGS, layout=layout))
    assert store.case("sub-01").intervals == Intervals(350.5, None)
    assert store.case("sub-01").covariates == {"age": 30}
    assert store.case("sub-02").intervals == Intervals(None, None)
    assert store.case("sub-02").notes == (
        "expected days above 0 in to_m12, got '-3'; correct the table",
        "expected days above 0 in to_m24, got 'soon'; correct the table",
    )


def test_dates_go_before_the_table_and_a_difference_is_shown(trial: Path) -> None:
    (trial / "participants.tsv").write_text(
        "participant_id\ttreatment_arm\tdays_to_current\tdays_to_outcome\n"
        "sub-01\tplacebo\t337\t300\nsub-02\tavonex\tn/a\tn/a\n"
    )
    state(trial, "scans", IN_ORDER)
    store = convert(trial)
    assert store.case("sub-01").intervals == Intervals(336, 336)
    assert notes(store) == (
        "expected 336 days in days_to_outcome, as dates say, got 300; correct one",
    )


LABELLED = replace(SETTINGS, layout=TrialLayout(sessions=LABELS, nominal_days=(0, 365, 730)))


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Return a trial of three subjects whose sessions are called m00, m12 and m24."""
    bids.write_trial(tmp_path / "bids", 3, geometry=GEOMETRY)
    labels = dict(zip(SESSIONS, LABELS, strict=True))
    for path in sorted((tmp_path / "bids").rglob("*"), key=lambda path: -len(path.parts)):
        new = path.name
        for role, label in labels.items():
            new = new.replace(role, label)
        path.rename(path.with_name(new))
    return tmp_path / "bids"


def test_exclusions_and_the_summary_use_the_trials_own_session_labels(labelled: Path) -> None:
    (labelled / "sub-01/sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-m00\t2016-02-01\nses-m12\t2015-03-02\nses-m06\t1990-01-01\n"
    )
    flair = "sub-02_ses-m12_FLAIR.nii.gz"
    (labelled / "sub-02/ses-m12/anat" / flair).unlink()
    (labelled / "derivatives/lesions/sub-03/ses-m24/anat").rename(labelled / "elsewhere")
    store, _ = converted(labelled, labelled.parent / "s.zarr", settings=LABELLED)
    text = "\n".join(summarise(store.table))
    assert "sub-01, ses-m12: expected m00 before m12, got 2016-02-01 (sub-01/" in text
    assert "sub-02, ses-m12: expected a FLAIR at m12, got FLAIR at m00, m24" in text
    assert "m24 net2 1" in text
    assert not any(role in text for role in SESSIONS)


def test_labels_and_nominal_days_are_recorded_in_the_store(labelled: Path) -> None:
    store, _ = converted(labelled, labelled.parent / "s.zarr", settings=LABELLED)
    assert open_store(store.path).spec.visits == VisitSchedule(LABELS, (0, 365, 730))


@pytest.mark.parametrize("days", [(0, 365, 365), (0, 700, 300), (7, 365, 730)])
def test_nominal_days_rise_from_zero(days: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="nominal_days: expected three days that rise from 0"):
        TrialLayout(nominal_days=days)


@pytest.mark.parametrize("text", ["", "20150302101", "2015-0302", "\u0662\u0660\u0661\u0665-03-02"])
def test_other_texts_are_no_dates(text: str) -> None:
    assert parse_acquisition_time(text) is None
