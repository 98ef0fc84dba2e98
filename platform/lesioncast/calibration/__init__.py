"""Calibration of counts and of P(active), learned on cases with known outcomes."""
