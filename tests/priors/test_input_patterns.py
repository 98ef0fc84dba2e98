"""Every pattern of missing images is told from the channels that are there."""

import torch

from lesioncast.priors.input_patterns import (
    KINDS,
    NO_IMAGE,
    PATTERNS,
    channels_of_pattern,
    pattern_number,
    patterns_of,
)

CHANNELS = (
    "w000/flair", "w000/t2", "w000/gad", "w048/flair", "w048/t2", "w048/gad", "w048/net2",
)  # fmt: skip


def pattern_with(*shown: str) -> int:
    """Return the pattern of a patient who has the channels `shown`."""
    present = torch.tensor([[name in shown for name in CHANNELS]])
    return int(patterns_of(present, CHANNELS)[0])


def test_pattern_is_the_later_session_and_the_rarest_kind_that_is_there() -> None:
    assert pattern_with() == NO_IMAGE
    assert pattern_with("w000/flair") == pattern_number(later=False, kind="flair")
    assert pattern_with("w000/flair", "w000/t2") == pattern_number(later=False, kind="t2")
    assert pattern_with("w000/flair", "w048/flair") == pattern_number(later=True, kind="flair")
    assert pattern_with("w048/flair", "w048/net2") == pattern_number(later=True, kind="net2")
    assert pattern_with(*CHANNELS) == pattern_number(later=True, kind="gad")
    numbers = {pattern_number(later=later, kind=kind) for later in (False, True) for kind in KINDS}
    assert numbers == set(range(1, PATTERNS))


def test_a_patient_with_the_channels_of_a_pattern_has_it_unless_the_condition_lacks_them() -> None:
    for pattern in range(PATTERNS):
        shown = channels_of_pattern(pattern, CHANNELS)
        found = int(patterns_of(torch.tensor([shown]), CHANNELS)[0])
        # NET2 of w000 is no channel, so this pattern is that of FLAIR.
        without_net2 = pattern == pattern_number(later=False, kind="net2")
        assert found == (pattern - 1 if without_net2 else pattern)
