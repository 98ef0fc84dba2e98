"""Say which lesions of a store's masks are not on its slabs, and which cases lost their outcome."""

from collections.abc import Iterator
from pathlib import Path

from storage.errors import Exclusion
from storage.layout import MASKS, OUTCOME, SESSIONS
from storage.preprocess.lesions import lost_outcome
from storage.store.case_table import CaseTable


def outcome_exclusions(table: CaseTable) -> tuple[Exclusion, ...]:
    """Return why each case has no outcome all of whose new lesions at outcome were lost.

    The case is in the store, and its images may be used. It has the split `unlabelled`.
    """
    return tuple(_outcome_exclusions(table))


def _outcome_exclusions(table: CaseTable) -> Iterator[Exclusion]:
    session = table.spec.visits.label(OUTCOME)
    for case in table.cases:
        transfer = lost_outcome(case.lesions)
        if transfer is not None:
            reason = (
                f"expected new lesions on the slab, got none of {transfer.source_count} "
                f"({transfer.source_mm3:.0f} mm3): {transfer.causes}; enlarge the slab or use "
                "smaller voxels"
            )
            path = str(Path(table.bids, case.sources[f"{OUTCOME}/net2"]))
            yield Exclusion(case.subject, "outcome lost", reason, session, path)


def lost_lesions(table: CaseTable) -> Iterator[str]:
    """Yield a line for each kind of mask that lost lesions in any case, with the totals."""
    for session in SESSIONS:
        for kind in MASKS:
            role = f"{session}/{kind}"
            transfers = [case.lesions[role] for case in table.cases if role in case.lesions]
            total, outside, small = (
                sum(getattr(transfer, name) for transfer in transfers)
                for name in ("source_count", "outside_count", "resampling_count")
            )
            cases = sum(transfer.lost_count > 0 for transfer in transfers)
            if cases:
                yield (
                    f"{table.spec.visits.label(session)} {kind}: {outside + small} of {total} "
                    f"lesions ({outside} outside the slab, {small} smaller than a voxel) in "
                    f"{cases} case{'' if cases == 1 else 's'}"
                )
