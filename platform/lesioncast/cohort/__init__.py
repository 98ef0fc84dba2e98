"""A simulated trial on real anatomy whose true counterfactuals are known."""

from lesioncast.cohort.settings import CohortSettings
from lesioncast.cohort.trial import Subject, simulate_subject

__all__ = ["CohortSettings", "Subject", "simulate_subject"]
