"""Simulate a trial on real anatomy with known counterfactual outcomes."""
