"""Read the cells of a trial's table as people mean them."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from lesioncast.errors import ConfigError
from lesioncast.imaging.covariates import fit_covariates
from storage import StorageError, Store
from storage.layout import CovariateValue
from storage.settings import TrialLayout
from storage.trial.cells import parse_cell
from storage.trial.dataset import scan_trial
from tests.storage.convert.conversion import GEOMETRY, SETTINGS, converted
from tests.support import bids

COLUMNS = {
    "age": ["34,5", "41,25", "29,0", "55,5", "38,75", "47,5"],
    "sex": ["F", "M", "NA", "F", "N/A", "M"],
    "site": ["1_2", "12", "1_02", "102", "007", "7"],
    "edss": ["3.5", "NA", "2.0", "-", "1.5", "4"],
    "dose": ["\u0661\u0662", "13", "null", "14", "Unknown", "15"],
    "score": ["1", "2", "inf", "1e999", "NaN", "3"],
}


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trial")
    bids.write_trial(root, 6, geometry=GEOMETRY)
    lines = ["\t".join(("participant_id", "treatment_arm", *COLUMNS))]
    for index, cells in enumerate(zip(*COLUMNS.values(), strict=True)):
        lines.append("\t".join((f"sub-0{index + 1}", bids.ARMS[index % 3], *cells)))
    (root / "participants.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def store(trial: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return converted(trial, tmp_path_factory.mktemp("store") / "store.zarr")[0]


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("age", COLUMNS["age"]),
        ("sex", ["F", "M", None, "F", None, "M"]),
        ("site", ["1_2", 12, "1_02", 102, "007", 7]),
        ("edss", [3.5, None, 2.0, None, 1.5, 4]),
        ("dose", ["\u0661\u0662", 13, None, 14, None, 15]),
        ("score", [1, 2, "inf", None, None, 3]),
    ],
)
def test_conversion_keeps_words_and_recognises_missing_values(
    store: Store, column: str, expected: list[CovariateValue]
) -> None:
    assert [case.covariates[column] for case in store.cases] == expected


@pytest.mark.parametrize("column", ["age", "site", "dose", "score"])
def test_odd_column_cannot_be_a_covariate(store: Store, column: str) -> None:
    with pytest.raises(ConfigError, match=rf"covariates: expected .*numbers or words as {column}"):
        fit_covariates([column], store.cases)


def test_missing_values_are_no_levels(store: Store) -> None:
    sex, edss = fit_covariates(["sex", "edss"], store.cases)
    assert sex.levels == ("F", "M")
    assert (edss.levels, edss.centre) == ((), 2.75)


def test_odd_columns_are_logged(trial: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scan_trial(trial, TrialLayout())
    assert "column age: expected numbers or words, got 0 numbers and 6 words, such as '34,5'" in (
        caplog.text
    )
    for column in ("site", "dose", "score"):
        assert f"column {column}: expected" in caplog.text
    for column in ("sex", "edss"):
        assert f"column {column}: expected" not in caplog.text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("-2", -2), ("+3", 3), ("34.50", 34.5), (".5", 0.5), ("5.", 5.0),
        ("1e-3", 0.001), ("2E5", 2e5), ("123456789012345678901", 123456789012345678901),
        ("1_000", "1_000"), ("0x10", "0x10"), ("\uff11\uff12", "\uff11\uff12"),
        ("\u22125", "\u22125"), ("1e", "1e"), ("infinity", "infinity"), ("00", "00"),
        ("none", "none"), ("None", None), ("#N/A", None), ("<NA>", None), ("?", None), (" ", None),
        ("9" * 5000, None),
    ],
)  # fmt: skip
def test_only_plain_decimals_are_numbers(text: str, value: CovariateValue) -> None:
    parsed = parse_cell(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("cell", "layout", "arm"),
    [
        ("NA", TrialLayout(), None),
        ("unknown", TrialLayout(), None),
        ("NA", TrialLayout(arm_names={"NA": "avonex"}), "avonex"),
    ],
)
def test_arm_with_the_name_of_a_missing_value_can_be_mapped(
    tmp_path: Path, cell: str, layout: TrialLayout, arm: str | None
) -> None:
    bids.write_trial(tmp_path / "bids", 1, geometry=GEOMETRY)
    table = tmp_path / "bids" / "participants.tsv"
    table.write_text(table.read_text().replace("placebo", cell).replace("OPERA", "N/A"))
    store, _ = converted(
        tmp_path / "bids", tmp_path / "store.zarr", settings=replace(SETTINGS, layout=layout)
    )
    assert (store.cases[0].arm, store.cases[0].trial) == (arm, None)


def test_row_with_more_cells_than_columns_is_refused(tmp_path: Path) -> None:
    table = "ID,group,age\nP1,placebo,34,5\nP2,placebo,41,,\n"
    (tmp_path / "clinical.csv").write_text(table)
    layout = TrialLayout(
        participants="clinical.csv", separator=",", subject_column="ID", arm_column="group"
    )
    with pytest.raises(
        StorageError, match=r"clinical\.csv, line 2: expected one cell a column, got"
    ):
        scan_trial(tmp_path, layout)
