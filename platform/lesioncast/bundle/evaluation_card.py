"""Read and write the evaluation card that lies beside a bundle's weights.

The manifest does not list the card. A bundle's digest names its weights, and a new evaluation must
not rename the forecasts made from them. Instead the card names its bundle.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lesioncast.errors import ConfigError, EvaluationCardError
from lesioncast.parsing import parse_dataclass
from lesioncast.warning_list import CodedWarning
from storage.atomic import atomic_write
from storage.text_files import read_text

SCHEMA = 4
CARD, EVALUATION = "EVALUATION.md", "evaluation.json"


@dataclass(frozen=True)
class EvaluationCard:
    """What a bundle's evaluation found, in words; the content of evaluation.json.

    `bundle` and `store` are digests. `findings` maps questions to answers. Date, code and store are
    None where the evaluation did not record them. `p_active_errors` are mean P(active) minus the
    true rate of the same patients, by arm; only a simulated trial knows the rates of all arms.
    """

    bundle: str
    test_cases: int
    date: str | None
    code: str | None
    store: str | None
    findings: Mapping[str, str]
    identifiability_warnings: tuple[CodedWarning, ...]
    p_active_errors: Mapping[str, float]
    schema: int = SCHEMA


def write_evaluation_card(bundle: Path, card: EvaluationCard) -> None:
    """Write the card into the bundle folder, replacing an older one. Raise OSError on failure."""
    text = json.dumps(asdict(card), indent=2, allow_nan=False) + "\n"
    atomic_write(bundle / EVALUATION, text.encode())


def read_evaluation_card(bundle: Path, digest: str) -> EvaluationCard | None:
    """Return the card of the bundle's evaluation; None where it has not been evaluated.

    Raise EvaluationCardError where the card is about another bundle than that with `digest`, has
    another schema, or is incomplete.
    """
    path = bundle / EVALUATION
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise EvaluationCardError(
            f"{path}: expected JSON, got {error}; run jobs/evaluate.py again, or remove the file"
        ) from error
    if not isinstance(content, dict):
        raise EvaluationCardError(
            f"{path}: expected a JSON object, got {type(content).__name__}; "
            "run jobs/evaluate.py again, or remove the file"
        )
    if (content.get("schema"), content.get("bundle")) != (SCHEMA, digest):
        raise EvaluationCardError(
            f"{path}: expected the evaluation of bundle {digest[:12]} in schema {SCHEMA}, got "
            f"{str(content.get('bundle'))[:12]} in schema {content.get('schema')}; "
            "run jobs/evaluate.py again, or remove the file"
        )
    try:
        return parse_dataclass(EvaluationCard, content, source=str(path))
    except ConfigError as error:
        raise EvaluationCardError(f"{error}; run jobs/evaluate.py again") from error
