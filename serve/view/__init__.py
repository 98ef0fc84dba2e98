"""The binary view of a forecast, which the page and other viewers draw."""
