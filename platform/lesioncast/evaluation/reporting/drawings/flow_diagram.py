"""The flow of participants as a diagram in the manner of CONSORT, drawn as SVG.

Units are those of the drawing, which takes the width of its column. Colours are variables of
report.css, so that the diagram follows the light or dark theme.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import escape

from lesioncast.evaluation.analysis.validity.participants import ParticipantFlow

WIDTH = 440
MAIN, SIDE, SPLIT = 190, 216, 136  # widths of the boxes of each kind
LINE, PADDING, GAP = 17, 9, 26
SIDE_LETTERS = 31  # that fit into a line of a box at the side
KINDS_SHOWN = 5


@dataclass(frozen=True)
class _Box:
    """A box with its upper left corner; the first line is its title and is bold."""

    x: float
    y: float
    width: float
    lines: tuple[str, ...]

    @property
    def height(self) -> float:
        return 2 * PADDING + LINE * len(self.lines)

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    def svg(self) -> str:
        """Return the box with its text."""
        texts = [
            f'<text x="{self.x + self.width / 2:g}" '
            f'y="{self.y + PADDING + LINE * (number + 0.72):g}" text-anchor="middle" '
            f'font-size="13" fill="var(--ink)"{_weight(number)}>{escape(line)}</text>'
            for number, line in enumerate(self.lines)
        ]
        return (
            f'<rect x="{self.x:g}" y="{self.y:g}" width="{self.width:g}" '
            f'height="{self.height:g}" rx="5" fill="var(--tint)" stroke="var(--dim)"/>'
            + "".join(texts)
        )


def _weight(number: int) -> str:
    return ' font-weight="650"' if number == 0 else ""


def flow_svg(flow: ParticipantFlow) -> str:
    """Return the diagram as SVG markup, with its content as a label for screen readers."""
    total = flow.total
    allocated = _Box(1, 1, MAIN, ("Allocated", str(total.allocated)))
    excluded = _beside(allocated, ("Excluded at conversion", str(total.excluded), *_kinds(flow)))
    converted = _below(allocated, excluded, ("Converted", str(total.converted)))
    unused = _beside(
        converted,
        (
            "Not used",
            f"arm not known: {total.without_arm}",
            f"no outcome: {total.without_outcome}",
        ),
    )
    usable = _below(converted, unused, ("With arm and outcome", str(total.with_outcome)))
    step = (WIDTH - 2 - SPLIT) / 2
    splits = [
        _Box(1 + place * step, usable.bottom + GAP * 1.4, SPLIT, (name, str(count)))
        for place, (name, count) in enumerate(
            (
                ("Training", total.training),
                ("Validation", total.validation),
                ("Test", total.test),
            )
        )
    ]
    test = splits[-1]
    scored = _Box(test.x, test.bottom + GAP, SPLIT, ("Scored here", str(total.scored)))
    boxes = [allocated, excluded, converted, unused, usable, *splits, scored]
    lines = [
        _arrow(allocated.middle, allocated.bottom, converted.y),
        _branch(allocated, excluded, converted),
        _arrow(converted.middle, converted.bottom, usable.y),
        _branch(converted, unused, usable),
        _fork(usable, splits),
        _arrow(test.middle, test.bottom, scored.y),
    ]
    height = scored.bottom + 1
    return (
        f'<svg role="img" aria-label="{escape(_label(boxes))}" '
        f'viewBox="0 0 {WIDTH} {height:g}" xmlns="http://www.w3.org/2000/svg">'
        f"{''.join(lines)}{''.join(box.svg() for box in boxes)}</svg>"
    )


def _kinds(flow: ParticipantFlow) -> Sequence[str]:
    """Return the reasons for exclusion in lines, the most frequent ones first."""
    kinds = list(flow.exclusions.items())
    lines = [f"{kind}: {number}" for kind, number in kinds[:KINDS_SHOWN]]
    if len(kinds) > KINDS_SHOWN:
        lines.append(f"other reasons: {sum(number for _, number in kinds[KINDS_SHOWN:])}")
    return [part for line in lines for part in textwrap.wrap(line, SIDE_LETTERS)]


def _beside(box: _Box, lines: tuple[str, ...]) -> _Box:
    """Return a box to the right, which begins below the middle of the arrow that leaves `box`."""
    return _Box(WIDTH - 1 - SIDE, box.bottom + 6, SIDE, lines)


def _below(box: _Box, beside: _Box, lines: tuple[str, ...]) -> _Box:
    """Return the next box of the main column, below `box` and the box beside its arrow."""
    return _Box(box.x, max(box.bottom + GAP, beside.bottom + 6), box.width, lines)


def _arrow(x: float, top: float, bottom: float) -> str:
    """Return an arrow downwards."""
    head = f"M{x - 4:g} {bottom - 7:g}L{x:g} {bottom - 1:g}L{x + 4:g} {bottom - 7:g}"
    return _path(f"M{x:g} {top:g}V{bottom - 1:g}{head}")


def _branch(box: _Box, beside: _Box, below: _Box) -> str:
    """Return an arrow to the right from the line between `box` and `below`."""
    y, x = min(beside.y + beside.height / 2, below.y - 8), beside.x
    return _path(
        f"M{box.middle:g} {y:g}H{x - 1:g}M{x - 7:g} {y - 4:g}L{x - 1:g} {y:g}L{x - 7:g} {y + 4:g}"
    )


def _fork(box: _Box, below: Sequence[_Box]) -> str:
    """Return one line that divides into an arrow to each box."""
    y = (box.bottom + below[0].y) / 2
    stem = _path(
        f"M{box.middle:g} {box.bottom:g}V{y:g}M{below[0].middle:g} {y:g}H{below[-1].middle:g}"
    )
    return stem + "".join(_arrow(one.middle, y, one.y) for one in below)


def _path(steps: str) -> str:
    return f'<path d="{steps}" fill="none" stroke="var(--dim)" stroke-width="1.3"/>'


def _label(boxes: Sequence[_Box]) -> str:
    return "Flow of participants. " + " ".join(f"{': '.join(box.lines)}." for box in boxes)
