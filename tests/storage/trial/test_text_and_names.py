"""Names and texts in other encodings and normal forms: each works, or fails in one sentence."""

import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from storage import StorageError
from storage.convert.verify import verify
from storage.settings import StoreSettings, TrialLayout
from storage.trial.dataset import scan_trial
from tests.storage.convert.conversion import GEOMETRY, SETTINGS, converted
from tests.support import bids

VISITS = {"w000": "d\u00e9but", "w048": "ann\u00e9e 1", "w096": "ann\u00e9e 2"}
LAYOUT = TrialLayout(
    sessions=("d\u00e9but", "ann\u00e9e 1", "ann\u00e9e 2"),
    participants="\u00e9tude.csv",
    separator=";",
    subject_column="num\u00e9ro",
    arm_column="bras",
    arm_names={"t\u00e9moin": "placebo"},
    flair="images/{subject}/{session}/t\u00eate*.nii*",
    net2="images/{subject}/{session}/l\u00e9sions.nii*",
)
MAPPED: StoreSettings = replace(SETTINGS, layout=LAYOUT)
LABELS = ("M\u00fcller-1", "P2", "P3")


def write_mapped_trial(root: Path, *, names: str, table: str) -> None:
    """Write a trial with French names, in those normal forms on disk and in the table."""
    for seed, label in enumerate(LABELS):
        for (session, channel), data in bids.volumes(GEOMETRY, seed).items():
            if channel in ("flair", "net2"):
                stem = "t\u00eate" if channel == "flair" else "l\u00e9sions"
                path = f"images/{label}/{VISITS[session]}/{stem}.nii.gz"
                bids.write_volume(root / unicodedata.normalize(names, path), data, GEOMETRY)
    rows = "num\u00e9ro;bras;\u00e2ge\n" + "".join(f"{label};t\u00e9moin;40\n" for label in LABELS)
    (root / "\u00e9tude.csv").write_text(unicodedata.normalize(table, rows), encoding="utf-8")


@pytest.mark.parametrize("names", ["NFC", "NFD"])
@pytest.mark.parametrize("table", ["NFC", "NFD"])
def test_composed_and_decomposed_names_are_the_same(tmp_path: Path, names: str, table: str) -> None:
    write_mapped_trial(tmp_path / "trial", names=names, table=table)
    store, _ = converted(tmp_path / "trial", tmp_path / "store.zarr", settings=MAPPED)
    assert [case.subject for case in store.cases] == ["sub-Mller1", "sub-P2", "sub-P3"]
    assert all(case.arm == "placebo" and case.present[:, 0].all() for case in store.cases)
    assert store.cases[0].covariates == {"\u00e2ge": 40}
    assert list(verify(store, tmp_path / "trial")) == []


def rename_to_latin_1(root: Path) -> None:
    folder = os.fsencode(root / "images")
    os.rename(folder + "/M\u00fcller-1".encode(), folder + b"/M\xfcller-1")  # noqa: PTH104


@pytest.mark.parametrize("damaged", [False, True])
def test_name_that_is_not_utf_8_excludes_its_subject_alone(tmp_path: Path, damaged: bool) -> None:  # noqa: FBT001
    root = tmp_path / "trial"
    write_mapped_trial(root, names="NFC", table="NFC")
    if damaged:
        flair = root / "images" / LABELS[0] / VISITS["w048"] / "t\u00eate.nii.gz"
        flair.write_bytes(flair.read_bytes()[:100])
    rename_to_latin_1(root)
    for _ in range(2):  # the first conversion leaves records that the second one reads
        store, _ = converted(root, tmp_path / "store.zarr", settings=MAPPED)
        assert [case.subject for case in store.cases] == ["sub-P2", "sub-P3"]
        (exclusion,) = store.table.excluded
        assert "names in UTF-8, got other bytes in the path of t" in exclusion.reason
        assert r"/images/M\xfcller-1/" in exclusion.path
        assert r"M\xfcller-1" in (store.path / "excluded.tsv").read_text(encoding="utf-8")
        assert list(verify(store, root)) == []


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(), None),
        (lambda text: text.encode("latin-1"), "expected UTF-8 text, got the byte 0xe9; save it as"),
        (lambda text: text.encode("utf-16"), "expected UTF-8 text, got the byte 0xff"),
        (lambda text: text.replace("\u00e9", "e").encode("utf-16-le"), "zero bytes, as in UTF-16"),
    ],
)  # fmt: skip
def test_table_in_another_encoding_is_read_or_refused(
    tmp_path: Path, encode: Callable[[str], bytes], words: str | None
) -> None:
    bids.write_trial(tmp_path, 2, geometry=GEOMETRY)
    table = tmp_path / "participants.tsv"
    table.write_bytes(encode(table.read_text().replace("OPERA", "OP\u00e9RA")))
    if words is None:
        (first, _) = scan_trial(tmp_path, TrialLayout())
        assert first.rows[0]["trial"] == "OP\u00e9RA"
    else:
        with pytest.raises(StorageError) as caught:
            scan_trial(tmp_path, TrialLayout())
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_names_that_differ_in_normal_form_only_are_ambiguous(tmp_path: Path) -> None:
    write_mapped_trial(tmp_path / "trial", names="NFC", table="NFC")
    folder = tmp_path / "trial" / "images" / "P2" / VISITS["w048"]
    composed = folder / "t\u00eate.nii.gz"
    shutil.copy(composed, folder / unicodedata.normalize("NFD", composed.name))
    store, _ = converted(tmp_path / "trial", tmp_path / "store.zarr", settings=MAPPED)
    (exclusion,) = store.table.excluded
    assert (exclusion.subject, exclusion.kind) == ("sub-P2", "ambiguous files")
