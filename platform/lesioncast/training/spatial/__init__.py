"""Fit the spatial prior of a run, and compute the base maps of its training cases."""
