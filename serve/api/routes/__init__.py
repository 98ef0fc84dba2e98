"""Routes of the HTTP API, one router a resource."""
