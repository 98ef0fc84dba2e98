"""The treatment arms of the paper, in order of efficacy (section 3, Dataset)."""

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
