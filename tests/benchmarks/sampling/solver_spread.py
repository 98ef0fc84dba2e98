"""Measure the error of the sampled spread by solver, spacing and step count, on known data.

PYTHONPATH=.:platform python tests/benchmarks/sampling/solver_spread.py
"""

from dataclasses import replace
from itertools import product
from typing import get_args

from lesioncast.config import load_config
from lesioncast.diffusion.settings.process import SamplerConfig, ScheduleConfig, Solver
from tests.support.known_denoisers import CONFIGS, DEVIATIONS, share_error, spread_error

HEAD = (
    "| schedule | solver | grid | steps | d 0.1 | 0.3 | 0.5 | 1.0 "
    "| p 0.01, 1 voxel | 40 voxels | p 0.1, 1 voxel | 40 voxels |"
)


def row(name: str, schedule: ScheduleConfig, sampler: SamplerConfig) -> str:
    """Return the errors in percent: deviations of Gaussian data, then shares of lesions."""
    solver = sampler.solver + (
        f" eta {sampler.eta:g}" if sampler.solver == "sde-dpmsolver++" else ""
    )
    solver += f" variance {sampler.variance:g}" if sampler.solver == "ancestral" else ""
    grid = f"{sampler.spacing} {sampler.logsnr_min:g} to {sampler.logsnr_max:g}"
    errors = [spread_error(deviation, schedule, sampler) for deviation in DEVIATIONS]
    errors += [
        share_error(share, voxels, schedule, sampler, batches=1024 // sampler.num_steps)
        for share, voxels in product((0.01, 0.1), (1, 40))
    ]
    figures = " | ".join(f"{100 * error:+.1f}" for error in errors)
    return f"| {name} | {solver} | {grid} | {sampler.num_steps} | {figures} |"


def main() -> None:
    """Print the shipped samplers and variants near them, then every solver and spacing."""
    print(HEAD, "|" + "---|" * 12, sep="\n")
    configs = {name: load_config(CONFIGS / f"{name}.yaml") for name in ("demo", "small", "paper")}
    for name, config in configs.items():
        print(row(f"{name}, shipped", config.schedule, config.sampler))
        for eta in (0.0, 1.0):
            print(row(name, config.schedule, replace(config.sampler, eta=eta)))
    for grid, variance in product(("t", "logsnr"), (0.0, 0.25, 0.5, 1.0)):
        sampler = SamplerConfig(spacing=grid, variance=variance)  # type: ignore[arg-type]
        print(row("paper", configs["paper"].schedule, sampler))
    for name, config in configs.items():
        num_steps = config.sampler.num_steps
        for grid, solver in product(("t", "logsnr"), get_args(Solver)):
            sampler = SamplerConfig(solver=solver, num_steps=num_steps, spacing=grid)  # type: ignore[arg-type]
            print(row(name, config.schedule, sampler))


if __name__ == "__main__":
    main()
