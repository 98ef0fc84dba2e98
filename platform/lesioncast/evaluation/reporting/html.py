"""The evaluation as one HTML file: findings in words, plots, slices, tables, provenance.

The file is self-contained: no script, no request, style and pictures inline. Its tables are
rendered from the Markdown of tables.md, so that the two cannot differ.
"""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup
from matplotlib.figure import Figure

from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.paper_results import SOURCE
from lesioncast.evaluation.reporting.drawings.flow_diagram import flow_svg
from lesioncast.evaluation.reporting.figures import DIM, INK, RULE, Panel
from lesioncast.evaluation.reporting.findings import findings
from lesioncast.evaluation.reporting.markdown.participants import describe_missing
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.imaging.channels import BASELINE, CURRENT, OUTCOME
from storage.radiological import CONVENTION

TEMPLATES = Path(__file__).parent / "templates"
TEMPLATE, STYLE = "report.html", "report.css"
THEME_VARIABLES = {INK: "--ink", DIM: "--dim", RULE: "--rule"}
"""Plot colour -> variable of report.css, so that plots follow the light or dark theme."""


@dataclass(frozen=True)
class Picture:
    """One image: `png` bytes, and the text `alt` for readers who cannot see it."""

    png: bytes
    alt: str
    caption: str

    @property
    def source(self) -> str:
        """Return a data URL for `src`, which requests nothing."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class ExampleCase:
    """One subject: the rule that chose it, its forecast in words, its slices."""

    subject: str
    rule: str
    words: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class InlinePlot:
    """A plot that stands in the page as SVG markup."""

    svg: Markup
    caption: str


def render_html(
    report: EvaluationReport,
    panels: Sequence[Panel],
    examples: Sequence[ExampleCase],
    maps: Sequence[Picture] = (),
) -> str:
    """Return report.html, from the content of metrics.json and the pictures."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        report=report,
        baseline=report.visits.describe(BASELINE),
        current=report.visits.describe(CURRENT),
        outcome=report.visits.describe(OUTCOME),
        style=Markup((TEMPLATES / STYLE).read_text()),
        findings=findings(report),
        plots=[
            InlinePlot(Markup(inline_svg(panel, name=f"plot{index}")), panel.caption)
            for index, panel in enumerate(panels)
        ],
        flow=None if report.participants is None else Markup(flow_svg(report.participants)),
        missing=None if report.participants is None else describe_missing(report.participants),
        examples=examples,
        maps=maps,
        convention=CONVENTION,
        tables=Markup(markdown_to_html(render_markdown(report))),
        published=SOURCE,
        provenance=list(_provenance(report)),
    )


def _provenance(report: EvaluationReport) -> Iterator[tuple[str, str]]:
    """Yield label and value of everything that the evaluation was made with."""
    yield "Bundle (sha256)", report.bundle
    provenance = report.provenance
    if provenance is not None:
        yield "Trained on", provenance.trained_on
        yield "Store (sha256 of settings and sources)", provenance.store
        yield "Code", provenance.code
        yield "Configuration", provenance.configuration
        yield "Command", provenance.command
        yield "Date", provenance.date
        versions = (f"{name} {version}" for name, version in provenance.libraries.items())
        yield "Versions", ", ".join(versions)
    yield "Seed", f"{report.seed}: it determines sample k of a subject, with the subject and k"
    yield "Samples", f"{report.samples} a patient on the received arm"
    resamples = report.bootstrap_resamples
    yield "Bootstrap", f"{resamples} resamples of the patients, 95 % percentile intervals"


def markdown_to_html(markdown: str) -> str:
    """Return Markdown as HTML for the report.

    Headings are one level lower, header cells have a scope, and wide tables scroll.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    heading = ""
    for index, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{int(token.tag[1]) + 1}"
        if token.type == "heading_open":
            heading = tokens[index + 1].content
        if token.type == "table_open":
            token.meta["label"] = heading
    _scope(tokens)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return str(parser.renderer.render(tokens, parser.options, {}))


def _scope(tokens: Sequence[Token]) -> None:
    """Mark the cells of the head as column headers and the first cell of a row as row header."""
    opened = False
    for before, token in zip(tokens, tokens[1:], strict=False):
        if token.type == "th_open":
            token.attrSet("scope", "col")
        elif token.type == "td_open" and before.type == "tr_open":
            token.tag, opened = "th", True
            token.attrSet("scope", "row")
        elif token.type == "td_close" and opened:
            token.tag, opened = "th", False


def _table_open(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
    label = Markup.escape(tokens[index].meta["label"])
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>\n'


def inline_svg(panel: Panel, *, name: str) -> str:
    """Return a plot as SVG for a page: selectable text, the page's colours, ids of its own."""
    text = _svg(panel.figure, salt=name)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids must be unique in the page, and several plots use the same ones.
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", text)
    # Without a fixed size the plot takes the width of its column.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    for colour, variable in THEME_VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    alt = Markup.escape(panel.alt)
    return text.replace("<svg", f'<svg role="img" aria-label="{alt}"', 1)


def _svg(figure: Figure, *, salt: str) -> str:
    content = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    return content.getvalue()
