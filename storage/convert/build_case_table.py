"""The case table as it follows from the records of the shards that count."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from storage.errors import StorageError
from storage.layout import CHANNELS, SESSIONS
from storage.preprocess.prepare import CaseMetadata
from storage.store.case_table import Case, CaseTable, Split
from storage.store.shards import ShardRecord
from storage.store.split import assign_splits

# The splits that go on, by subject and arm.
Settled = Mapping[tuple[str, str | None], Split]


def previous_splits(table: CaseTable, before: CaseTable | None) -> Settled:
    """The splits of a former table, which stay as long as seed, shares and a subject's arm do."""
    if before is None or (before.seed, before.split_fractions) != (
        table.seed,
        table.split_fractions,
    ):
        return {}
    return {(c.subject, c.arm): c.split for c in before.cases if c.split != "unlabelled"}


def build_case_table(
    head: CaseTable,
    records: Mapping[str, ShardRecord],
    *,
    settled: Settled,
) -> CaseTable:
    """A case table with the cases and refusals of its shards' records, sorted by subject."""
    rows = sorted(
        (found for name, record in records.items() for found in record.rows(name)),
        key=lambda found: found[0].subject,
    )
    outcomes = sorted(
        (outcome for record in records.values() for outcome in record.outcomes),
        key=lambda outcome: outcome.subject,
    )
    refused = tuple(
        replace(o.result, path=o.result.path and str(Path(head.bids, o.result.path)))
        for o in outcomes
        if not isinstance(o.result, CaseMetadata)
    )
    facts = [(row, o.result) for o, row in rows if isinstance(o.result, CaseMetadata)]
    if not facts:
        raise StorageError(
            f"{head.bids}: none of {len(refused)} subjects could be converted; "
            f"the first: {refused[0]}."
        )
    arms = {each.subject: each.arm if _has_outcome(each) else None for _, each in facts}
    kept = {name: settled[name, arm] for name, arm in arms.items() if (name, arm) in settled}
    splits = assign_splits(arms, head.split_fractions, seed=head.seed, kept=kept)
    cases = tuple(
        Case(
            index=index,
            row=row,
            arm_index=-1 if each.arm is None else head.spec.arms.index(each.arm),
            split=splits[each.subject],
            **vars(each),
        )
        for index, (row, each) in enumerate(facts)
    )
    return replace(head, cases=cases, excluded=refused)


def _has_outcome(facts: CaseMetadata) -> bool:
    """Whether a case has what a forecast is learned from: NET2 at w096, under a known arm."""
    net2 = facts.present[SESSIONS.index("w096"), CHANNELS.index("net2")]
    return facts.arm is not None and bool(net2)
