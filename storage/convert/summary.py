"""Summarise a conversion in a few lines of text."""

from collections import Counter
from collections.abc import Iterator

from storage.layout import CHANNELS, SESSIONS
from storage.store.case_table import SPLITS, CaseTable
from storage.store.copies import find_copies
from storage.store.lost_lesions import lost_lesions, outcome_exclusions
from storage.trial.dataset import REQUIRED_SESSIONS


def summarise(table: CaseTable) -> list[str]:
    """Return lines on cases, splits, missing inputs, copies, lost lesions and exclusions."""
    splits = Counter(case.split for case in table.cases)
    lines = [
        f"{len(table.cases)} converted: "
        + ", ".join(f"{splits[name]} {name}" for name in SPLITS if splits[name])
    ]
    missing = {name: count for name, count in _count_missing(table) if count}
    if missing:
        lines.append("without: " + ", ".join(f"{name} {count}" for name, count in missing.items()))
    if copies := find_copies(table.cases):
        lines.append(f"{len(copies)} images under two subjects, who share a split; correct them:")
        lines += [f"  {copy.named(table.spec.visits)}" for copy in copies]
    if noted := [(case.subject, note) for case in table.cases for note in case.notes]:
        lines.append(f"{len(noted)} dates to look at:")
        lines += [f"  {subject}: {note}" for subject, note in noted]
    if lost := list(lost_lesions(table)):
        lines.append("lesions lost on the way to the slab:")
        lines += [f"  {line}" for line in lost]
    if without := outcome_exclusions(table):
        lines.append(f"{len(without)} without an outcome, because every new lesion was lost:")
        lines += [f"  {exclusion}" for exclusion in without]
    kinds = Counter(exclusion.kind for exclusion in table.excluded)
    if kinds:
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        lines.append(f"{len(table.excluded)} excluded: {counts}")
        lines += [f"  {exclusion}" for exclusion in table.excluded]
    return lines


def _count_missing(table: CaseTable) -> Iterator[tuple[str, int]]:
    """Yield each optional input and the number of cases without it."""
    for k, session in enumerate(SESSIONS):
        for c, channel in enumerate(CHANNELS):
            required = channel == "flair" and session in REQUIRED_SESSIONS
            impossible = channel == "net2" and session == SESSIONS[0]  # new compared with what?
            if not required and not impossible:
                count = sum(not case.present[k, c] for case in table.cases)
                yield f"{table.spec.visits.label(session)} {channel}", count
    yield "parcellation", sum(not case.parcellation for case in table.cases)
    yield "arm", sum(case.arm is None for case in table.cases)
