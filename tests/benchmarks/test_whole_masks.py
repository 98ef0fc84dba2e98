"""The study of whole masks: its scores of lesions, the classifier, pairs, and a small run."""

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.whole_masks import study
from tests.benchmarks.whole_masks.classifier import classifier_auc
from tests.benchmarks.whole_masks.draws import NETWORKS, STORED, VOXELS
from tests.benchmarks.whole_masks.pairs import shares_held
from tests.benchmarks.whole_masks.scores import (
    CASE_SCORES,
    case_scores,
    histograms,
    summarise,
    wasserstein,
)
from tests.support.forecast import write_store
from tests.training.base_map_runs import write_base_map_bundle

SPACING = (3.0, 1.0, 1.0)
ONCE = np.ones((1, 2))  # every case has the weight 1


def mask_of(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Return a mask with boxes (s, h, w, length), each a row of so many voxels."""
    mask = np.zeros((4, 20, 30), bool)
    for s, h, w, length in boxes:
        mask[s, h, w : w + length] = True
    return mask


def test_a_mask_is_summarised_by_its_lesions_and_their_distances() -> None:
    found = summarise(mask_of((0, 2, 2, 3), (2, 2, 2, 3), (0, 12, 2, 1)), SPACING)
    assert found.volumes.tolist() == [9, 3, 9]
    assert sorted(found.nearest) == pytest.approx([6, 6, np.hypot(10, 1)])
    assert len(found.pairs) == 3
    assert len(summarise(mask_of((0, 2, 2, 3)), SPACING).nearest) == 0
    assert len(summarise(mask_of(), SPACING).volumes) == 0


def test_scores_of_a_case_are_least_for_the_observed_mask() -> None:
    truth, other = mask_of((0, 2, 2, 3), (2, 12, 2, 5)), mask_of((3, 18, 20, 9))
    of_truth = summarise(truth, SPACING)
    own, wrong = (
        case_scores(
            np.stack([mask] * 3), truth, SPACING, ([summarise(mask, SPACING)] * 3, of_truth)
        )
        for mask in (truth, other)
    )
    assert own == pytest.approx(np.zeros(len(CASE_SCORES)), abs=1e-3)
    assert (wrong[:3] > 1).all()
    assert wrong[3:].tolist() == pytest.approx([1, 0.003, 0.012])


def test_the_distance_of_distributions_is_the_shift_between_them() -> None:
    small, large = (summarise(mask_of((0, 2, 2, n)), SPACING) for n in (2, 4))
    of_small, of_large = (histograms([[one, one], [one]], "log volume") for one in (small, large))
    score = wasserstein(of_large, of_small, "log volume")
    assert score(ONCE) == pytest.approx(np.log(2), abs=0.03)
    assert wasserstein(of_small, of_small, "log volume")(ONCE) == pytest.approx(0)


def test_the_classifier_finds_a_shift_and_nothing_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    observed = [rng.normal(size=(10, 18)) for _ in range(30)]
    alike = [rng.normal(size=(10, 18)) for _ in range(30)]
    shifted = [features + 1.5 * (np.arange(18) == 4) for features in alike]
    weights = np.ones((1, 30))
    assert 0.40 < classifier_auc(observed, alike)(weights)[0] < 0.60
    assert classifier_auc(observed, shifted)(weights)[0] > 0.75


def test_a_nested_pair_of_masks_is_held_whole() -> None:
    one = np.stack([mask_of((0, 2, 2, 6)), mask_of((1, 2, 2, 6)), mask_of()])
    other = np.stack([mask_of((0, 2, 2, 3)), mask_of((1, 2, 4, 8)), mask_of((2, 2, 2, 2))])
    same, different = shares_held(one, other)
    assert same == pytest.approx((1 + 4 / 6) / 2)
    assert different == 0


def test_a_small_study_scores_networks_beside_masks_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=8, train=40)
    write_base_map_bundle(tmp_path / "bundle", store)
    flags = ["--bundle", str(tmp_path / "bundle"), "--store", str(tmp_path / "store.zarr")]
    flags += ["--split", "train", "--active", "12", "--samples", "2"]
    assert study.main([*flags, "--keep", str(tmp_path / "kept")]) == 0
    printed = capsys.readouterr().out
    assert f"| score | {VOXELS} | {STORED} | {NETWORKS} |" in printed
    for name in (*CASE_SCORES, "W1 log volume", "classifier AUC"):
        assert printed.count(f"| {name} |") == 2  # scores, and differences
    # Kept masks are read again, and give the same table.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.npz")}
    assert len(kept) == 24
    study.main([*flags, "--keep", str(tmp_path / "kept")])
    assert capsys.readouterr().out == printed
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
