"""The HTTP API: FastAPI application, routes, schemas and middleware."""
