"""Read what a trial says about itself in dataset_description.json of BIDS."""

import json
from dataclasses import dataclass
from pathlib import Path

from storage.errors import StorageError
from storage.text_files import TextEncodingError, read_text

DESCRIPTION_FILE = "dataset_description.json"
SIMULATED_WITH = "SimulatedWith"  # the key under which a simulated trial keeps its settings


@dataclass(frozen=True)
class TrialDescription:
    """What a trial says about itself."""

    #: Name of the trial, None if it gives none.
    name: str | None = None
    #: Whether its subjects are simulated: whether its description holds `SimulatedWith`.
    simulated: bool = False


def read_description(root: Path) -> TrialDescription:
    """Return the description of the trial in `root`; a trial without a file says nothing.

    Raises StorageError if the file cannot be read as a JSON object: a simulated trial would else
    pass for a real one.
    """
    path = root / DESCRIPTION_FILE
    if not path.is_file():
        return TrialDescription()
    try:
        content = json.loads(read_text(path))
    except (OSError, TextEncodingError, ValueError) as error:
        raise StorageError(
            f"{path}: expected JSON, got {error}; repair the file or remove it."
        ) from error
    if not isinstance(content, dict):
        raise StorageError(
            f"{path}: expected a JSON object, got {type(content).__name__}; "
            "repair the file or remove it."
        )
    name = content.get("Name")
    simulated = content.get(SIMULATED_WITH) not in (None, False)
    return TrialDescription(name if isinstance(name, str) else None, simulated)
