"""What an evaluation adds to a bundle: EVALUATION.md for people, evaluation.json for forecasts.

The manifest lists neither, on purpose: a bundle's digest names its weights, and an evaluation,
which can be made again on other data, must not rename the forecasts that came from them. Instead
both files name the bundle that they are about, and whoever reads them compares.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lesioncast.bundle.evaluation_card import CARD, EVALUATION, SCHEMA
from lesioncast.errors import EvaluationCardError
from lesioncast.evaluation.reporting.findings import findings
from storage.atomic import atomic_write

Record = Mapping[str, Any]


def write_card(bundle: Path, record: Record) -> None:
    """Put the evaluation `record` beside the weights of the bundle folder, replacing an older.

    Raises EvaluationCardError where the folder cannot be written to.
    """
    content = {
        "schema": SCHEMA,
        "bundle": record["bundle"],
        "provenance": record["provenance"],
        "cases": record["cases"],
        "findings": {each.title: each.text for each in findings(record)},
        "warnings": record["warnings"],
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    try:
        atomic_write(bundle / EVALUATION, text.encode())
        atomic_write(bundle / CARD, card_text(record).encode())
    except OSError as error:
        raise EvaluationCardError(
            f"{bundle}: expected a bundle's folder to put the evaluation in, got {error.strerror}; "
            "the report is complete, but forecasts carry no warnings of it: copy the bundle to "
            "where you may write and evaluate it there"
        ) from error


def card_text(record: Record) -> str:
    """EVALUATION.md."""
    made = record["provenance"] or {}
    sentences = (record["warnings"] or {"sentences": []})["sentences"]
    parts = [
        "# How this bundle was evaluated",
        *record["notices"],
        f"{record['cases']['test']} test cases, {record['samples']} samples a case; bundle "
        f"`{record['bundle']}`, data `{made.get('store', 'not recorded')}`, "
        f"{made.get('code', 'code not recorded')}, {made.get('date', 'date not recorded')}. "
        "Brackets: 95 % intervals over patients.",
        *(f"## {each.title}\n\n{each.text}" for each in findings(record)),
        "## What the data cannot show of treatments",
        "\n".join(f"- {sentence}" for sentence in sentences),
        "Forecasts from this bundle carry these sentences. The manifest does not list this file: "
        "it may be replaced without another digest for the weights.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
