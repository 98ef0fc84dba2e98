"""Priors that read a patient's images once: how much new lesion is expected, and where."""
