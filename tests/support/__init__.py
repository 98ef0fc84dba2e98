"""Builders, clusters and oracles shared by tests."""
