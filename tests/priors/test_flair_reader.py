"""The reader of FLAIR finds lesions in made-up images, at every scale of intensity and space."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lesioncast.priors.flair_reader.candidates import (
    candidate_count,
    count_pieces,
    find_candidates,
    masks_at,
)
from lesioncast.priors.flair_reader.fit import ReaderCases, fit_flair_reader, readings
from lesioncast.priors.flair_reader.reader import (
    NUMBER_NAMES,
    NUMBERS,
    SESSION_CHOICES,
    FlairReader,
    reading_of_sessions,
)
from lesioncast.priors.flair_reader.volumes import WorkingGrid, normalise, smooth

SHAPE, SPACING = (9, 44, 44), (3.0, 3.0, 3.0)
MIDDLE = 21.5
BASELINE, BOTH = SESSION_CHOICES.index((True, False)), SESSION_CHOICES.index((True, True))
T2_OF_W000, NET2 = 0, 6  # numbers: squared probabilities of T2 lesion, and of new lesion
STEPS = 120


def place(volume: np.ndarray, rng: np.random.Generator, value: float) -> None:
    """Write a ball of 1 to 2 voxels radius into the tissue of `volume` [s, h, w]."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(5, 9)
    h, w = MIDDLE + radius * np.cos(angle), MIDDLE + radius * np.sin(angle)
    volume[near((rng.integers(2, 7), h, w), rng.uniform(1.1, 1.9))] = value


def near(centre: tuple[float, float, float], radius: float) -> np.ndarray:
    """Return True for the voxels within `radius` of `centre`, bool [s, h, w]."""
    distance = np.linalg.norm(np.indices(SHAPE).T - np.array(centre), axis=-1).T
    return distance < radius


def patients(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return FLAIR [n, 2, s, h, w] and the reader's masks [n, 5, s, h, w] of made-up patients.

    A head of tissue with a dark centre has 0 to 4 lesions at both sessions. Half of the patients
    have a new lesion at w048, which enhances.
    """
    rng = np.random.default_rng(seed)
    s, h, w = np.indices(SHAPE)
    radius = np.hypot(h - MIDDLE, w - MIDDLE)
    tissue = np.where(radius < 12, np.where(radius < 3, -0.6, 0.0), -1.0)
    flair, masks = np.zeros((number, 2, *SHAPE)), -np.ones((number, 5, *SHAPE))
    for row in range(number):
        old, new = np.zeros(SHAPE), np.zeros(SHAPE)
        for _ in range(rng.integers(5)):
            place(old, rng, 1)
        if row % 2:
            place(new, rng, 1)
        for session, lesions in enumerate((old, np.maximum(old, new))):
            noise = 0.06 * rng.standard_normal(SHAPE) * (radius < 12)
            flair[row, session] = tissue + noise + 0.5 * lesions * (radius < 12)
        # In the order of READER_MASKS: w000 T2 and gadolinium, w048 T2, gadolinium and NET2.
        for channel, lesions in enumerate((old, 0 * old, np.maximum(old, new), new, new)):
            masks[row, channel] = np.where(lesions > 0, 1, -1)
    return torch.from_numpy(flair).float(), torch.from_numpy(masks).float()


@cache
def trained(seed: int = 0) -> FlairReader:
    """Return a reader that was fitted to 40 patients."""
    reader = FlairReader(SPACING)
    fit_flair_reader(reader, ReaderCases.of(*patients(40, 1), SPACING), seed=seed, steps=STEPS)
    return reader


def test_numbers_follow_the_lesions_of_other_patients() -> None:
    flair, masks = patients(40, 2)
    read = trained()(flair)
    volume = (masks[:, 0] > 0).flatten(1).sum(1).float().log1p()
    for choice in (BASELINE, BOTH):
        both = torch.stack([read[:, choice, T2_OF_W000], volume])
        assert torch.corrcoef(both)[0, 1] > 0.9
    new = (masks[:, 4] > 0).flatten(1).any(1)
    # A new lesion that lies in an older one or outside the head cannot be seen.
    assert roc_auc_score(new, read[:, BOTH, NET2]) > 0.9


def test_pieces_are_counted_and_not_their_voxels() -> None:
    volume = torch.zeros(1, 6, 9, 9)
    volume[0, 0, 0, 0] = volume[0, 3, 4, 4] = 1  # two pieces of one voxel
    volume[0, 2:4, 7:9, 0:2] = 1  # and one of eight
    volume[0, 5, 7:9, 7] = 1  # and one of two, at the border
    index = torch.randperm(volume.numel(), generator=torch.Generator().manual_seed(0))[None]
    chosen = volume.flatten(1).gather(1, index)
    shape = torch.tensor([volume.shape[1:]])
    assert count_pieces(chosen, index, shape).item() == pytest.approx(4, abs=1e-5)
    assert count_pieces(0 * chosen, index, shape).item() == 0


def test_every_lesion_more_raises_what_is_read_of_t2() -> None:
    flair, masks = patients(8, 3)
    quietest = int((masks[:, 2] > 0).flatten(1).sum(1).argmin())
    flair = flair[quietest : quietest + 1]
    amounts = [trained()(flair)[0, BOTH, T2_OF_W000].item()]
    for angle in np.arange(6) * np.pi / 3:
        centre = (4, MIDDLE + 8 * np.cos(angle), MIDDLE + 8 * np.sin(angle))
        flair = torch.where(torch.from_numpy(near(centre, 1.6)), flair.clamp(min=0.5), flair)
        amounts.append(trained()(flair)[0, BOTH, T2_OF_W000].item())
    assert (np.diff(amounts) > 0).all()


def test_a_choice_of_sessions_reads_as_if_the_other_session_were_missing() -> None:
    flair, _ = patients(3, 4)
    read = trained()(flair)
    for choice, sessions in enumerate(SESSION_CHOICES):
        shown = torch.tensor(sessions)
        alone = trained()(flair * shown[:, None, None, None])
        assert torch.equal(alone[:, choice], read[:, choice])
        assert torch.equal(reading_of_sessions(read, shown.expand(3, 2)), read[:, choice])
    assert not torch.equal(read[:, BOTH, :6], read[:, BASELINE, :6])
    assert (read[:, BASELINE, 3:] == 0).all()


def test_reading_is_one_row_at_a_time_or_all_at_once() -> None:
    flair, _ = patients(4, 5)
    rows = torch.cat([trained()(row[None]) for row in flair])
    torch.testing.assert_close(trained()(flair), rows, rtol=1e-4, atol=1e-5)


def test_gain_and_offset_of_the_scanner_do_not_matter() -> None:
    flair, _ = patients(3, 6)
    torch.testing.assert_close(trained()(0.4 * flair - 0.3), trained()(flair), rtol=1e-3, atol=1e-3)


def test_finer_voxels_give_the_same_numbers() -> None:
    flair, masks = patients(3, 7)
    fine = flair.repeat_interleave(3, dim=3).repeat_interleave(3, dim=4)
    reader = FlairReader((3.0, 1.0, 1.0))
    reader.load_state_dict(trained().state_dict())
    assert WorkingGrid.of(reader.spacing).spacing == SPACING
    torch.testing.assert_close(reader(fine), trained()(flair), rtol=1e-3, atol=1e-3)
    index = find_candidates(flair, SPACING).change_index
    finer = masks.repeat_interleave(3, dim=3).repeat_interleave(3, dim=4)
    assert torch.equal(masks_at(finer, index, reader.spacing), masks_at(masks, index, SPACING))


def test_half_precision_of_the_networks_does_not_reach_the_reader() -> None:
    flair, _ = patients(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(trained()(flair), trained()(flair))
        within = trained()(flair)
    assert torch.equal(within, trained()(flair))


def test_equal_seeds_fit_equal_readers_and_leave_other_random_numbers_alone() -> None:
    cases = ReaderCases.of(*patients(6, 1), SPACING)
    fitted = []
    for seed in (0, 0, 1):
        reader = FlairReader(SPACING)
        state = torch.get_rng_state()
        fit_flair_reader(reader, cases, seed=seed, steps=3)
        assert torch.equal(torch.get_rng_state(), state)
        fitted.append(readings(reader, cases))
    assert torch.equal(fitted[0], fitted[1])
    assert not torch.equal(fitted[0], fitted[2])


def test_missing_masks_teach_nothing() -> None:
    flair, masks = patients(6, 1)
    weights = []
    for known in (slice(0, 5), slice(0, 4), slice(4, 5)):
        shown = torch.zeros_like(masks)
        shown[:, known] = masks[:, known]
        reader = FlairReader(SPACING)
        fit_flair_reader(reader, ReaderCases.of(flair, shown, SPACING), seed=0, steps=5)
        weights.append((reader.static[0].weight, reader.change[-1].weight[0]))
    everything, without_net2, net2_alone = weights
    assert torch.equal(without_net2[0], everything[0])
    assert not torch.allclose(without_net2[1], everything[1])
    assert not torch.allclose(net2_alone[0], everything[0])


def test_missing_session_teaches_nothing_and_numbers_are_finite() -> None:
    flair, masks = patients(6, 1)
    flair[:, 1] = 0
    reader = FlairReader(SPACING)
    cases = ReaderCases.of(flair, masks, SPACING)
    fit_flair_reader(reader, cases, seed=0, steps=5)
    read = readings(reader, cases)
    assert read[:, BASELINE].isfinite().all()
    assert read[:, BASELINE, 0].std() == pytest.approx(1.0, abs=1e-3)
    assert (reader.mean[3:] == 0).all()


def test_no_image_gives_zeros_and_an_even_image_no_infinity() -> None:
    missing = torch.zeros(2, 2, *SHAPE)
    assert (trained()(missing) == 0).all()
    even = missing.clone()
    even[0] = -0.2
    assert trained()(even).isfinite().all()
    assert (normalise(missing) == 0).all()


def test_normal_intensities_of_the_head_become_half_of_a_standard_normal() -> None:
    rng = np.random.default_rng(0)
    image = np.full((1, 20, 40, 40), -1.0)
    image[0, 4:16, 8:32, 8:32] = 0.2 + 0.03 * rng.standard_normal((12, 24, 24))
    head = normalise(torch.from_numpy(image))[0, 4:16, 8:32, 8:32]
    assert head.mean().item() == pytest.approx(0, abs=0.02)
    assert head.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("spacing", [(3.0, 3.0, 3.0), (3.0, 1.5, 1.5)])
def test_smoothing_has_its_width_in_mm(spacing: tuple[float, float, float]) -> None:
    impulse = torch.zeros(21, 41, 41, dtype=torch.float64)
    impulse[10, 20, 20] = 1
    smoothed = smooth(impulse, 6.0, spacing)
    for axis, size in enumerate(spacing):
        line = smoothed.sum(tuple(other for other in range(3) if other != axis))
        distance = (torch.arange(len(line)) - len(line) // 2) * size
        assert ((line * distance**2).sum() / line.sum()).sqrt().item() == pytest.approx(6, abs=0.1)
    even = torch.full((5, 6, 7), 0.3)
    torch.testing.assert_close(smooth(even, 6.0, spacing), even)


def test_candidates_are_a_share_of_the_volume_and_few_volumes_have_at_least_one() -> None:
    assert candidate_count(15 * 64 * 56) == 512
    assert candidate_count(3) == 1
    assert len(NUMBER_NAMES) == NUMBERS
