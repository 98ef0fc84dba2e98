"""Inspect one case of a store: measure it and draw it."""

from dataclasses import dataclass

from storage.qc.measure import CaseQuality, measure_case
from storage.qc.slices import SlicePictures, draw_slices
from storage.store.store import Store


@dataclass(frozen=True)
class Inspection:
    """Measurements and pictures of one case."""

    quality: CaseQuality
    pictures: SlicePictures


def inspect_case(store: Store, index: int) -> Inspection:
    """Return measurements and pictures of the case with that index."""
    arrays = store.read(index)
    return Inspection(
        measure_case(store, index, arrays), draw_slices(arrays, store.spec.visits.labels)
    )
