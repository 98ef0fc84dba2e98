"""The page's benchmark in a reduced form, with bounds for a machine that does other things too."""

from tests.benchmarks.service.page_speed import measure


def test_the_page_answers_at_once_and_keeps_its_memory() -> None:
    figures = measure(15, forecasts=3)
    assert figures["first_paint_ms"] < 8000
    for name in ("slice", "threshold"):
        assert figures[f"{name}_median_ms"] < 400
    # A view of 13 MB that stayed in memory at each opening would be a growth of 100 % and more.
    assert figures["heap_growth"] < 0.5
