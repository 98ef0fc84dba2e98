"""A simulated trial on real anatomy whose true counterfactuals are known."""

from lesioncast.simulation.settings import SimulationSettings
from lesioncast.simulation.subject import SimulatedSubject, simulate_subject

__all__ = ["SimulationSettings", "SimulatedSubject", "simulate_subject"]
