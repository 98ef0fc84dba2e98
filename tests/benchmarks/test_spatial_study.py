"""The study of the spatial prior: which inputs each row reads, and the arithmetic of its table."""

from types import SimpleNamespace

import numpy as np

from lesioncast.evaluation.where.map_scores import score_map
from lesioncast.priors.spatial.inputs import CHANNELS, FLAIR_CHANNELS, SpatialInputs
from tests.benchmarks.studies.spatial_prior import (
    ALL,
    EXACT,
    OTHER_HISTORY,
    OTHER_IMAGES,
    prior_maps,
    table,
)

SHAPE = (1, 2, 2)


def case_of(value: float) -> SimpleNamespace:
    """Return a case whose channels all hold one value."""
    channels = {name: np.full(SHAPE, value, np.float32) for name in CHANNELS}
    labels = np.ones(SHAPE, np.int16)
    return SimpleNamespace(
        spatial=SimpleNamespace(inputs=SpatialInputs(channels, (3, 3, 3), labels))
    )


def test_each_row_reads_its_own_part_of_the_inputs() -> None:
    seen: list[SpatialInputs] = []

    def log_density(inputs: SpatialInputs) -> np.ndarray:
        seen.append(inputs)
        return np.zeros(SHAPE, np.float32)

    maps = prior_maps(SimpleNamespace(log_density=log_density), case_of(1), case_of(-1))
    read = dict(zip(maps, seen, strict=True))
    assert set(read["FLAIR alone"].channels) == set(FLAIR_CHANNELS)
    assert all(name.startswith("w000/") for name in read["FLAIR, masks of w000"].channels)
    labelled = {name for name, inputs in read.items() if inputs.parcellation is not None}
    assert labelled == {ALL, OTHER_IMAGES, OTHER_HISTORY}
    history = read[OTHER_HISTORY].channels
    assert {name for name, volume in history.items() if (volume > 0).all()} == set(FLAIR_CHANNELS)
    assert all((volume < 0).all() for volume in read[OTHER_IMAGES].channels.values())


def test_the_table_gives_shares_of_the_exact_gain() -> None:
    atlas, lesions = np.full(4, 0.25), np.array([1, 0, 0, 0], np.int32)
    good, half = np.array([0.64, 0.12, 0.12, 0.12]), np.array([0.4, 0.2, 0.2, 0.2])
    density = {ALL: half, OTHER_IMAGES: atlas, EXACT: good}
    rows = {name: [score_map(one, atlas, lesions)] * 3 for name, one in density.items()}
    lines = {line.split("|")[1].strip(): line for line in table(rows) if line.startswith("|")}
    share = np.log(0.4 / 0.25) / np.log(0.64 / 0.25)
    assert f"{share:.2f}" in lines[ALL]
    assert "1.00 (1.00 to 1.00)" in lines[EXACT]
    assert f"{np.log(0.4 / 0.25):.1f} (" in lines[OTHER_IMAGES]
