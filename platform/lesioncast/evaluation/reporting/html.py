"""The evaluation as one HTML file: findings in words, plots, slices, tables, provenance.

Self-contained: no script, no request, style and pictures inline. The tables are those of tables.md,
rendered from the same Markdown, so that the two cannot differ.
"""

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from matplotlib.figure import Figure

from lesioncast.evaluation.paper_results import SOURCE
from lesioncast.evaluation.reporting.figures import DIM, INK, RULE, Panel
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.markdown.report import render_markdown

Record = Mapping[str, Any]

HERE = Path(__file__).parent / "templates"
TEMPLATE, STYLE = "report.html", "report.css"
INKS = {INK: "--ink", DIM: "--dim", RULE: "--rule"}
"""Colours of a plot that follow the reader's light or dark theme."""


@dataclass(frozen=True)
class Picture:
    """One image: `png` bytes, `alt` for who cannot see it."""

    png: bytes
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """As the value of a `src` that requests nothing."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class ExampleCase:
    """One subject: the rule that chose it, its forecast in words, its slices."""

    subject: str
    why: str
    words: str
    pictures: tuple[Picture, ...]


def render_html(record: Record, panels: Sequence[Panel], sights: Sequence[ExampleCase]) -> str:
    """report.html, from what metrics.json holds and the pictures."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        record=record,
        style=Markup((HERE / STYLE).read_text()),
        findings=findings(record),
        warnings=(record["warnings"] or {"sentences": []})["sentences"],
        plots=[
            {"svg": Markup(inline_svg(each, name=f"plot{place}")), "caption": each.caption}
            for place, each in enumerate(panels)
        ],
        sights=sights,
        tables=Markup(markdown_to_html(render_markdown(record))),
        published=SOURCE,
        provenance=list(_provenance(record)),
    )


def _provenance(record: Record) -> Iterator[tuple[str, str]]:
    made = record["provenance"] or {}
    yield "Bundle (sha256)", record["bundle"]
    for label, key in (
        ("Trained on", "trained_on"),
        ("Store (sha256 of settings and sources)", "store"),
        ("Code", "code"),
        ("Configuration", "configuration"),
        ("Command", "command"),
        ("Date", "date"),
    ):
        if key in made:
            yield label, str(made[key])
    if "libraries" in made:
        named = made["libraries"].items()
        yield "Versions", ", ".join(f"{name} {number}" for name, number in named)
    yield "Seed", f"{record['seed']}: sample k of a subject follows from it, the subject and k"
    yield "Samples", f"{record['samples']} a patient on the own arm"
    yield "Bootstrap", f"{record['bootstrap']} resamples of the patients, 95 % percentile intervals"


def markdown_to_html(markdown: str) -> str:
    """Markdown as HTML, headings one level lower, header cells with scope, tables that scroll."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    heading = ""
    for place, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 1}"
        if token.type == "heading_open":
            heading = tokens[place + 1].content
        if token.type == "table_open":
            token.meta["label"] = heading
    _scope(tokens)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return str(parser.renderer.render(tokens, parser.options, {}))


def _scope(tokens: Sequence[Token]) -> None:
    """The head's cells are headers of their columns, the first cell of a row that of the row."""
    opened = False
    for before, token in zip(tokens, tokens[1:], strict=False):
        if token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "td_open" and before.type == "tr_open":
            token.tag, opened = "th", True
            token.attrSet("scope", "row")
        elif token.type == "td_close" and opened:
            token.tag, opened = "th", False


def _table_open(_: Any, tokens: Sequence[Token], place: int, *__: Any) -> str:
    label = Markup.escape(tokens[place].meta["label"])
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>\n'


def inline_svg(panel: Panel, *, name: str) -> str:
    """A plot as SVG to stand in a page: real text, the page's colours, ids of its own."""
    text = _svg(panel.figure, salt=name)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    for colour, variable in INKS.items():
        text = text.replace(colour, f"var({variable})")
    alt = Markup.escape(panel.alt)
    return text.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def _svg(figure: Figure, *, salt: str) -> str:
    content = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return content.getvalue()
