"""Simulate a trial on real anatomy with known counterfactual outcomes."""

from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import SimulatedSubject, simulate_subject

__all__ = ["SimulationSettings", "SimulatedSubject", "simulate_subject"]
