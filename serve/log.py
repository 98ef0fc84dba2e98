"""The service's log: lines of Ray Serve's own log as JSON, with the id of the request.

Messages are event names such as `forecast.accepted`, so that they can be searched. The field
`forecast` holds the id of the forecast and ties a request to what became of it. No line names a
subject; paths in tracebacks would, so subject ids in tracebacks are replaced by `sub-*`.
"""

import logging
import re
import traceback

JSON_LOGGING_CONFIG = {"encoding": "JSON"}  # the `logging_config` of a Ray Serve deployment

_SUBJECT = re.compile("sub-[A-Za-z0-9]+")


def _redact_subjects(record: logging.LogRecord) -> bool:
    """Replace subject ids in a record's traceback; as a logging filter, drop no record.

    Formatters use `exc_text` where it is set, and render `exc_info` themselves only where it is
    not.
    """
    if record.exc_info and record.exc_info[1]:
        text = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        record.exc_text = _SUBJECT.sub("sub-*", text)
    return True


logger = logging.getLogger("ray.serve")
logger.addFilter(_redact_subjects)
