"""The treatment arms of the paper, in order of efficacy (section 3, Dataset)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One treatment arm of a trial."""

    #: The name in participants.tsv.
    name: str
    #: The paper's abbreviation of the efficacy: none, low, mild, moderate or high.
    efficacy: str


PAPER_ARMS = (
    Arm("placebo", "placebo"),
    Arm("laquinimod", "NE"),
    Arm("avonex", "LE"),
    Arm("interferon", "MiE"),
    Arm("fumarate", "MoE"),
    Arm("ocrelizumab", "HE"),
)
PAPER_ARM_NAMES = tuple(arm.name for arm in PAPER_ARMS)


def bids_label(arm: str) -> str:
    """Return an arm's name as a BIDS label, which is alphanumeric.

    An example is DimethylFumarate for dimethyl_fumarate.
    """
    return "".join(word[0].upper() + word[1:] for word in re.findall("[A-Za-z0-9]+", arm))


def describe_label_collision(arms: Iterable[str]) -> str | None:
    """Return why names of arms cannot all name files, or None.

    Labels that differ in case only are one file on the file systems of Windows and macOS.
    """
    arm_by_label: dict[str, str] = {}
    for arm in arms:
        label = bids_label(arm).casefold()
        if not label:
            return f"names with letters or digits of ASCII, got {arm!r}"
        if label in arm_by_label:
            return (
                f"names that differ in letters and digits, got {arm_by_label[label]!r} and {arm!r}"
            )
        arm_by_label[label] = arm
    return None
