"""The forecast service: an HTTP API on Ray Serve."""
