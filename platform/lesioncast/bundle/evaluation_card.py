"""Read the evaluation that lies beside a bundle's weights.

The manifest lists neither evaluation file. A bundle's digest names its weights; a new evaluation
must not rename the forecasts made from them. Both files name their bundle.
"""

import json
from pathlib import Path

from lesioncast.errors import EvaluationCardError

SCHEMA = 1


CARD, EVALUATION = "EVALUATION.md", "evaluation.json"


def read_warnings(bundle: Path, digest: str) -> tuple[str, ...] | None:
    """The warnings that the evaluation of the bundle came to; None where there is no evaluation.

    Raises EvaluationCardError where it is of another bundle than that with `digest`.
    """
    path = bundle / EVALUATION
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    if (content.get("schema"), content.get("bundle")) != (SCHEMA, digest):
        raise EvaluationCardError(
            f"{path}: expected the evaluation of bundle {digest[:12]} in schema {SCHEMA}, got "
            f"{str(content.get('bundle'))[:12]} in schema {content.get('schema')}; "
            "run jobs/evaluate.py again, or remove the file"
        )
    return tuple(content["warnings"]["sentences"])
