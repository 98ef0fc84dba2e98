"""Find the folder of the trial from which a store was converted."""

import logging
from pathlib import Path

from storage.store.store import Store

logger = logging.getLogger(__name__)


def trial_folder(store: Store, given: Path | None) -> Path:
    """Return the folder `given`, or by default that from which the store was converted.

    Log a warning if there is no such folder.
    """
    folder = (given or Path(store.table.bids)).absolute()
    if not folder.is_dir():
        logger.warning(
            "%s: expected the folder of the trial of %s, got none; give it with --bids",
            folder,
            store.path,
        )
    return folder
