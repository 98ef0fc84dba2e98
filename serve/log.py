"""What the service writes of itself: lines of Serve's own log, as JSON with the request's id.

Each names the forecast that it is about as `forecast`, which ties a request to what came of it. No
line names a subject, though the paths in tracebacks would.
"""

import logging
import re
import traceback

JSON_LOGGING_CONFIG = {"encoding": "JSON"}  # Serve's logging_config of a deployment

_SUBJECT = re.compile("sub-[A-Za-z0-9]+")


def _redact_subjects(record: logging.LogRecord) -> bool:
    """A filter that lets everything pass, tracebacks without names: formatters take the text of
    one that is there."""
    if record.exc_info and record.exc_info[1]:
        text = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        record.exc_text = _SUBJECT.sub("sub-*", text)
    return True


logger = logging.getLogger("ray.serve")
logger.addFilter(_redact_subjects)
