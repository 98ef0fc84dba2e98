"""Forecasts of a patient under every arm: samples, their summary, BIDS files and figures."""
