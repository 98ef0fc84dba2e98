"""What the service writes of itself: lines of Serve's own log, as JSON with the request's id.

Each names the forecast that it is about as `forecast`, which ties a request to what came of it.
"""

import logging

STRUCTURED = {"encoding": "JSON"}  # Serve's logging_config of a deployment

logger = logging.getLogger("ray.serve")
