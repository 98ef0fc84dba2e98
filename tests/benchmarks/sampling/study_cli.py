"""Command line of the studies on a CPU: bundle, store and cases."""

import argparse
from pathlib import Path

from lesioncast.arrays import evenly_spaced
from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from storage import Case, Store, open_store, parse_location


def study_parser(doc: str | None, *, cases: int, split: str) -> argparse.ArgumentParser:
    """Return a parser with the arguments of all studies. `doc` is the script's docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--store", type=parse_location, required=True)
    parser.add_argument("--cases", type=int, default=cases, help="of the split")
    parser.add_argument("--split", default=split, help="whose cases are told or drawn")
    return parser


def load_study(args: argparse.Namespace) -> tuple[Store, Bundle, list[Case]]:
    """Open the store, load the bundle and select the requested number of evaluable cases."""
    store, bundle = open_store(args.store), load_bundle(args.bundle)
    return (
        store,
        bundle,
        evenly_spaced(cases_with_outcome(store.select(split=args.split)), args.cases),
    )
