"""The forecast service on Ray Serve. Not here yet: see serve/README.md."""
