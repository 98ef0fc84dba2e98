"""Lesions that enlarge, regions that a subject prefers, prone places, and their early signs."""

import re
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import ndimage

from lesioncast import simulation
from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.imaging.regions import WHITE_MATTER
from lesioncast.parsing import parse_dataclass
from lesioncast.simulation.bids_metadata import fingerprint
from lesioncast.simulation.lesions.enlarging import host_weights
from lesioncast.simulation.lesions.placement import PeriodStart
from lesioncast.simulation.lesions.shapes import Lesion
from lesioncast.simulation.outcome_law.redraw import last_period
from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import simulate_subject
from storage.layout import CONNECTIVITY_26
from tests.simulation.optional_parts import with_all_parts

SETTINGS = SimulationSettings(subjects=1, shape=(21, 64, 64), spacing=(3.0, 3.0, 3.0), seed=5)
ENLARGING = replace(SETTINGS, enlarging_share=0.3)
STRENGTHS = ("enlarging_share", "regional_propensity", "prone_places", "early_sign")


def whole(lesion: Lesion, shape: tuple[int, ...], *, grown: bool = False) -> np.ndarray:
    """Return a lesion's mask in the box, if `grown` with the voxels that touch it."""
    mask = np.zeros(shape, bool)
    mask[lesion.window] = lesion.mask
    return ndimage.binary_dilation(mask, CONNECTIVITY_26) if grown else mask


@pytest.fixture(scope="module")
def starts_and_new() -> list[tuple[PeriodStart, tuple[Lesion, ...]]]:
    """Both periods of 60 subjects whose lesions may enlarge."""
    placed = [last_period(ENLARGING, index).lesions for index in range(60)]
    return [pair for lesions in placed for pair in zip(lesions.starts, lesions.new, strict=True)]


def test_every_lobe_touches_a_lesion_placed_before_the_period_and_covers_none(
    starts_and_new: list[tuple[PeriodStart, tuple[Lesion, ...]]],
) -> None:
    lobes = 0
    for start, new in starts_and_new:
        shape = start.sites.white.shape
        older = np.zeros(shape, bool)
        for lesion in start.earlier:
            older |= whole(lesion, shape)
        for lesion in new:
            assert not (whole(lesion, shape) & older).any()
            if lesion.enlarges:
                lobes += 1
                assert (whole(lesion, shape, grown=True) & older).any()
    assert lobes > 50


def test_the_share_of_lobes_is_that_of_the_settings(
    starts_and_new: list[tuple[PeriodStart, tuple[Lesion, ...]]],
) -> None:
    """Cortical lesions never enlarge another, so the share is of the others."""
    trials = [(len(new), start.brain.patient.cortical) for start, new in starts_and_new]
    chance = np.array([0.3 * (1 - cortical) for number, cortical in trials for _ in range(number)])
    lobes = sum(lesion.enlarges for _, new in starts_and_new for lesion in new)
    error = np.sqrt((chance * (1 - chance)).sum())
    assert abs(lobes - chance.sum()) < 3 * error


def test_active_and_larger_lesions_enlarge_more_often(
    starts_and_new: list[tuple[PeriodStart, tuple[Lesion, ...]]],
) -> None:
    start = next(start for start, _ in starts_and_new if len(start.earlier) > 10)
    voxels = np.array([lesion.mask.sum() for lesion in start.earlier])
    idle = host_weights(start.earlier, np.zeros(len(voxels), bool))
    assert np.array_equal(np.argsort(idle, kind="stable"), np.argsort(voxels, kind="stable"))
    assert host_weights(start.earlier, np.ones(len(voxels), bool)) == pytest.approx(15 * idle)
    touched = np.zeros(2)
    for period, new in starts_and_new:
        shape = period.sites.white.shape
        for lobe in (lesion for lesion in new if lesion.enlarges):
            around = whole(lobe, shape, grown=True)
            near = [(whole(lesion, shape) & around).any() for lesion in period.earlier]
            touched += [period.active[near].any(), len(period.active) > 0]
    active = np.mean([period.active.mean() for period, _ in starts_and_new if period.earlier])
    assert touched[0] / touched[1] > active + 0.2


def test_later_sessions_show_the_enlarged_lesion_and_net2_counts_it() -> None:
    settings = replace(SETTINGS, enlarging_share=1.0)
    index = next(i for i in range(30) if simulate_subject(settings, i).net2("w048").any())
    subject = simulate_subject(settings, index)
    net2 = subject.net2("w048")
    count = subject.counts[0, PAPER_ARM_NAMES.index(subject.arm)]
    lesions = last_period(settings, index).lesions.new[0][:count]
    separate = sum(not lesion.enlarges for lesion in lesions)
    assert separate < count == ndimage.label(net2, CONNECTIVITY_26)[1]
    assert subject.t2[1][net2].all()
    assert not subject.t2[0][net2].any()
    before, after = (ndimage.label(subject.t2[k], CONNECTIVITY_26)[1] for k in (0, 1))
    assert after <= before + separate, "lobes join older lesions"


@pytest.mark.parametrize("name", STRENGTHS)
def test_an_optional_part_keeps_patients_counts_and_brain(name: str) -> None:
    changed = simulate_subject(replace(SETTINGS, **{name: 0.3}), 8)
    default = simulate_subject(SETTINGS, 8)
    assert np.array_equal(changed.counts, default.counts)
    assert np.array_equal(changed.parcellation, default.parcellation)
    if name != "regional_propensity":
        assert np.array_equal(changed.t2[0], default.t2[0]), "w000 precedes both periods"


def test_regional_propensity_gathers_old_and_new_lesions_in_the_same_half() -> None:
    """Without it, the halves that old and new lesions prefer are independent given anatomy."""
    agreement = {}
    for strength in (0.0, 2.0):
        settings = replace(SETTINGS, regional_propensity=strength)
        halves = []
        for index in range(80):
            lesions = last_period(settings, index).lesions
            new = [lesion for period in lesions.new for lesion in period]
            if new:
                rows = [[each.centre[1] for each in group] for group in (lesions.baseline, new)]
                halves.append([np.mean(group) for group in rows])
        agreement[strength] = np.corrcoef(np.array(halves).T)[0, 1]
    assert agreement[2.0] > agreement[0.0] + 0.15


def test_prone_places_hold_their_share_of_new_lesions() -> None:
    settings = replace(SETTINGS, prone_places=0.8)
    inside, weight = [], []
    for index in range(60):
        lesions = last_period(settings, index).lesions
        for start, new in zip(lesions.starts, lesions.new, strict=True):
            assert start.prone is not None
            inside += [start.prone[lesion.centre] for lesion in new]
            weight.append(start.prone[start.sites.white].mean())
    assert 0.05 < np.mean(weight) < 0.16, "about a tenth of the tissue"
    assert np.mean(inside) > 3 * np.mean(weight)


def test_early_signs_show_at_the_session_that_begins_the_period_alone() -> None:
    """The difference of two images with and without signs is the signs: noise is the same."""
    disease = replace(SETTINGS, enlarging_share=0.3, prone_places=0.3)
    signs = replace(disease, early_sign=0.2)
    index = next(i for i in range(20) if simulate_subject(disease, i).net2("w096").any())
    plain, signed = simulate_subject(disease, index), simulate_subject(signs, index)
    assert np.array_equal(plain.ranks, signed.ranks)
    shown = np.abs(signed.flair - plain.flair) / np.median(plain.flair[plain.flair > 0])
    assert (shown[2] == 0).all(), "no period follows w096"
    white = np.isin(plain.parcellation, WHITE_MATTER) & ~plain.t2[1]
    assert 0.05 < (shown[1][white] > 0.05).mean() < 0.4
    assert (shown[0] != shown[1]).any(), "each period has signs of its own"
    assert not shown[:, ~np.isin(plain.parcellation, WHITE_MATTER)].any()


def test_early_signs_come_true_more_often_than_elsewhere() -> None:
    settings = replace(with_all_parts(SETTINGS), prone_places=0.8)
    hits, even = [], []
    for index in range(40):
        subject = simulate_subject(settings, index, arm="placebo")
        plain = simulate_subject(replace(settings, early_sign=0.0), index, arm="placebo")
        new = subject.net2("w096", "placebo")
        white = np.isin(subject.parcellation, WHITE_MATTER) & ~subject.t2[1]
        if (new & white).any():
            sign = subject.flair[1] - plain.flair[1] > 0.03 * np.median(plain.flair[1][white])
            hits.append(sign[new & white].mean())
            even.append(sign[white].mean())
    assert np.mean(hits) > 1.8 * np.mean(even)


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_strength_out_of_range_raises(name: str) -> None:
    for value in (-0.1, 3.5):
        with pytest.raises(ValueError, match=rf"simulation.{name} must lie in \[0, "):
            replace(SETTINGS, **{name: value})


def test_a_fingerprint_names_optional_parts_only_where_they_differ_from_the_default() -> None:
    assert not set(fingerprint(SETTINGS)) & {"location_law", "lesion_sizes", *STRENGTHS}
    changed = fingerprint(with_all_parts(SETTINGS))
    assert changed["location_law"] == "measured"
    assert changed["enlarging_share"] == 0.3


def test_the_settings_shown_in_the_readme_are_valid_and_turn_every_part_on() -> None:
    readme = Path(simulation.__file__).with_name("README.md").read_text()
    (block,) = re.findall(r"^    simulation:\n(?:      .*\n)+", readme, re.M)
    values = yaml.safe_load(textwrap.dedent(block))["simulation"]
    settings = parse_dataclass(SimulationSettings, {"subjects": 1} | values, source="README.md")
    assert settings.location_law == settings.lesion_sizes == "measured"
    assert all(getattr(settings, name) > 0 for name in STRENGTHS)
