"""What a conversion came to, in a few lines for people."""

from collections import Counter
from collections.abc import Iterator

from storage.layout import CHANNELS, SESSIONS
from storage.store.case_table import SPLITS, CaseTable
from storage.trial.dataset import REQUIRED_SESSIONS


def summarise(table: CaseTable) -> list[str]:
    """How many cases, in which splits, what optional inputs they lack, who was refused and why."""
    splits = Counter(case.split for case in table.cases)
    lines = [
        f"{len(table.cases)} converted: "
        + ", ".join(f"{splits[name]} {name}" for name in SPLITS if splits[name])
    ]
    lacking = {name: count for name, count in _lacking(table) if count}
    if lacking:
        lines.append("without: " + ", ".join(f"{name} {count}" for name, count in lacking.items()))
    kinds = Counter(refusal.kind for refusal in table.excluded)
    if kinds:
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        lines.append(f"{len(table.excluded)} refused: {counts}")
        lines += [f"  {refusal}" for refusal in table.excluded]
    return lines


def _lacking(table: CaseTable) -> Iterator[tuple[str, int]]:
    """Each optional input, and how many cases are without it."""
    for k, session in enumerate(SESSIONS):
        for c, channel in enumerate(CHANNELS):
            required = channel == "flair" and session in REQUIRED_SESSIONS
            never = channel == "net2" and session == SESSIONS[0]  # new since when?
            if not required and not never:
                count = sum(not case.present[k, c] for case in table.cases)
                yield f"{session} {channel}", count
    yield "parcellation", sum(not case.parcellation for case in table.cases)
    yield "arm", sum(case.arm is None for case in table.cases)
