"""A simulated trial on real anatomy whose true counterfactuals are known."""

from lesioncast.simulation.settings import CohortSettings
from lesioncast.simulation.subject import Subject, simulate_subject

__all__ = ["CohortSettings", "Subject", "simulate_subject"]
