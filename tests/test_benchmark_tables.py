"""The learning study's tables, from runs whose answers are known by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lesioncast.training.progress import METRICS

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import learned

LESIONS = (0, 0, 3, 1)
HEADER = (
    "participant_id,lesions,p_active_ensemble,lesions_ensemble,p_active_regression,"
    "lesions_regression"
)


def written(
    folder: Path, *, chance: tuple[float, ...], nats: float, losses: tuple[int, ...]
) -> Path:
    """A run of four cases; what it counts is right."""
    folder.mkdir()
    lines = [
        f"sub-{row},{true},{p},{true},{p},0"
        for row, (true, p) in enumerate(zip(LESIONS, chance, strict=True))
    ]
    (folder / learned.CASES).write_text("\n".join([HEADER, *lines]) + "\n")
    own = np.full((2, 4), nats)
    np.savez(folder / learned.STEERING, own=own, none=own + 0.5)
    run = folder / "runs" / "finetune"
    run.mkdir(parents=True)
    reports = [{"step": 25 * (at + 1), "loss": loss / 1000} for at, loss in enumerate(losses)]
    (run / METRICS).write_text("".join(json.dumps(report) + "\n" for report in reports))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, list[Path]]:
    """A recipe that ranks all cases right, and a variant that ranks half of the pairs wrong."""
    return {
        "recipe": [
            written(tmp_path / f"a{seed}", chance=(0.1, 0.2, 0.8, 0.7), nats=2.0, losses=(9, 7))
            for seed in range(2)
        ],
        "worse": [
            written(tmp_path / f"b{seed}", chance=(0.1, 0.9, 0.8, 0.7), nats=3.0, losses=(10, 8, 6))
            for seed in range(2)
        ],
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_values_and_paired_differences_are_those_of_the_runs(
    folders: dict[str, list[Path]],
) -> None:
    _, _, recipe, worse, regression = map(cells, learned.table(folders))
    assert recipe[2:4] == ["1.000 (1.000 to 1.000)", ""]
    assert worse[2] == "0.500 (0.500 to 0.500)"
    assert worse[3].startswith("-0.500 (-1.000 to ")
    assert worse[4:7] == ["0.000 (0.000 to 0.000)", "+0.000 (+0.000 to +0.000)",
                          "1.00 (1.00 to 1.00)"]  # fmt: skip
    assert worse[7:] == [
        "3.00 (3.00 to 3.00)", "+1.000 (+1.000 to +1.000)", "0.50 (0.50 to 0.50)",
    ]  # fmt: skip
    assert regression[2] == "1.000"
    assert regression[4] == f"{(np.log(4) ** 2 + np.log(2) ** 2) / 4:.3f}"
    assert regression[6] == "0.00 (observed 1.00)"


def test_curves_hold_the_steps_that_every_run_reported(folders: dict[str, list[Path]]) -> None:
    head, _, recipe, worse = map(cells, learned.curves(folders))
    assert head[1:] == ["25", "50"]
    assert recipe[1:] == ["9.00", "7.00"]
    assert worse[1:] == ["10.00", "8.00"]


def test_seeds_that_disagree_widen_the_interval(tmp_path: Path) -> None:
    """All cases of a run agree, so the interval is that of the seeds alone."""
    recipe, variant = (
        [
            written(tmp_path / f"{name}{seed}", chance=(0.1, 0.2, 0.8, 0.7), nats=nats, losses=(1,))
            for seed, nats in enumerate(found)
        ]
        for name, found in (("a", (2.0, 2.0)), ("b", (2.0, 4.0)))
    )
    assert learned.difference(variant, recipe, learned.surprise) == "+1.000 (+0.000 to +2.000)"
