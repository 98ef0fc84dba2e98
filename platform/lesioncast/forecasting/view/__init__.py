"""The view of a forecast: what the service's page, and one file that holds the page, draw."""
