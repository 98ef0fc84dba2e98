"""Settings of the simulated trial in which every optional part of the disease is present."""

from dataclasses import replace

from lesioncast.simulation.settings import SimulationSettings


def with_all_parts(settings: SimulationSettings) -> SimulationSettings:
    """Return `settings` with all optional parts of the disease."""
    return replace(
        settings,
        location_law="measured",
        lesion_sizes="measured",
        enlarging_share=0.3,
        regional_propensity=0.6,
        prone_places=0.3,
        early_sign=0.1,
    )
