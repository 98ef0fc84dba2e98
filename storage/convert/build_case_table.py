"""Build the case table from the records of the current shards."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from storage.errors import StorageError
from storage.preprocess.prepare import CaseMetadata
from storage.store.case_table import Case, CaseTable, Split, has_outcome
from storage.store.copies import find_copies, linked_subjects
from storage.store.shards import ShardRecord
from storage.store.split import assign_splits

# Splits to keep, by subject and arm.
PreviousSplits = Mapping[tuple[str, str | None], Split]


def previous_splits(table: CaseTable, previous: CaseTable | None) -> PreviousSplits:
    """Return the splits of the previous table, which stay valid for equal seed and fractions.

    They are keyed by subject and arm: a subject whose arm changed is assigned anew.
    """
    if previous is None or (previous.seed, previous.settings.split_fractions) != (
        table.seed,
        table.settings.split_fractions,
    ):
        return {}
    return {
        (case.subject, case.arm): case.split
        for case in previous.cases
        if case.split != "unlabelled"
    }


def build_case_table(
    head: CaseTable,
    records: Mapping[str, ShardRecord],
    *,
    previous: PreviousSplits,
) -> CaseTable:
    """Return `head` with the cases and exclusions of its shards' records, sorted by subject.

    Raises StorageError if there is no case.
    """
    rows = sorted(
        (case_row for name, record in records.items() for case_row in record.rows(name)),
        key=lambda case_row: case_row[0].subject,
    )
    outcomes = sorted(
        (outcome for record in records.values() for outcome in record.outcomes),
        key=lambda outcome: outcome.subject,
    )
    excluded = tuple(
        replace(
            outcome.result,
            session=outcome.result.session and head.spec.visits.label(outcome.result.session),
            path=outcome.result.path and str(Path(head.bids, outcome.result.path)),
        )
        for outcome in outcomes
        if not isinstance(outcome.result, CaseMetadata)
    )
    metadata_by_row = [
        (row, outcome.result) for outcome, row in rows if isinstance(outcome.result, CaseMetadata)
    ]
    if not metadata_by_row:
        raise StorageError(
            f"{head.bids}: none of {len(excluded)} subjects could be converted; "
            f"the first: {excluded[0]}."
        )
    arms = {
        metadata.subject: metadata.arm if has_outcome(metadata.present, metadata.lesions) else None
        for _, metadata in metadata_by_row
    }
    existing_splits = {
        name: previous[name, arm] for name, arm in arms.items() if (name, arm) in previous
    }
    copies = find_copies([metadata for _, metadata in metadata_by_row])
    splits = assign_splits(
        arms,
        head.settings.split_fractions,
        seed=head.seed,
        existing_splits=existing_splits,
        groups=linked_subjects(copies),
    )
    cases = tuple(
        Case(
            index=index,
            row=row,
            arm_index=-1 if metadata.arm is None else head.spec.arms.index(metadata.arm),
            split=splits[metadata.subject],
            **vars(metadata),
        )
        for index, (row, metadata) in enumerate(metadata_by_row)
    )
    return replace(head, cases=cases, excluded=excluded)
