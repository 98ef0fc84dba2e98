"""Rows that are chosen evenly from a sequence."""

from lesioncast.arrays import evenly_spaced


def test_any_number_of_items_is_chosen_from_any_sequence() -> None:
    """A step in floating point once led past the end: 1256 cases, of which 120 were chosen."""
    for length in range(1, 1500, 7):
        for number in (1, 3, 120, 300, length):
            chosen = evenly_spaced(range(length), number)
            assert len(chosen) == min(number, length)
            assert chosen == sorted(set(chosen))
            assert chosen[0] == 0
