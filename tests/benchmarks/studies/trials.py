"""Simulate the separate trials by which studies choose, and on which the headline is measured.

    PYTHONPATH=.:platform python tests/benchmarks/studies/trials.py validation

Each trial has a role, a seed and sizes, which are written down here and nowhere else. A recipe is
chosen by the validation cases of the demo's own trial, or by the trial `validation`. The trial
`final-test` is simulated once the recipe is fixed, for the headline of platform/RESULTS.md: no
study may use its seed. Of both, the training cases fit the baselines, the cases of split `val`
calibrate, and those of split `test` are scored. Trial and store go to $LESIONCAST_ROOT/<role>.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lesioncast.config import load_config
from lesioncast.jobs import convert, simulate
from lesioncast.jobs.command.runner import configure_logging

CONFIG = Path("jobs/configs/demo.yaml")


@dataclass(frozen=True)
class TrialRole:
    """A simulated trial apart from the one that a bundle is trained on, and what it is for."""

    name: str
    #: `simulation.seed`; the demo's own trial has 0.
    seed: int
    #: Cases that fit the baselines.
    train: int
    #: Cases that calibrate.
    calibration: int
    #: Cases that are scored.
    scored: int

    @property
    def subjects(self) -> int:
        """Return the number of all subjects."""
        return self.train + self.calibration + self.scored

    def flags(self, config: Path = CONFIG) -> tuple[str, ...]:
        """Return the flags with which every job works on this trial."""
        shares = (self.train, self.calibration, self.scored)
        fractions = ", ".join(repr(size / self.subjects) for size in shares)
        return (
            f"--config={config}",
            f"--set=name={self.name}",
            f"--set=simulation.seed={self.seed}",
            f"--set=simulation.subjects={self.subjects}",
            f"--set=store.split_fractions=[{fractions}]",
        )

    def store(self, config: Path = CONFIG) -> Path:
        """Return the folder of its store."""
        return load_config(config, [f"name={self.name}"]).paths.store


VALIDATION = TrialRole("validation", seed=2101, train=1720, calibration=1000, scored=1000)
FINAL_TEST = TrialRole("final-test", seed=2103, train=1720, calibration=1000, scored=4000)
ROLES = {role.name: role for role in (VALIDATION, FINAL_TEST)}


def study_seed(text: str) -> int:
    """Parse the seed of patients of a study. Raise ArgumentTypeError for that of the final test."""
    seed = int(text)
    if seed == FINAL_TEST.seed:
        raise argparse.ArgumentTypeError(
            f"expected another seed than {seed}, which is kept for the final test; choose one"
        )
    return seed


def make_trial(role: TrialRole, config: Path = CONFIG) -> None:
    """Simulate and convert a trial; what is finished stays. Raise SystemExit if a job fails."""
    for job in (simulate, convert):
        if code := job.main(role.flags(config)):
            raise SystemExit(f"{role.name}: {job.__name__} failed with {code}; its log says why")


def main(argv: Sequence[str] | None = None) -> int:
    """Make one trial, and print the flags with which jobs work on it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--config", type=Path, default=CONFIG)
    args = parser.parse_args(argv)
    configure_logging()
    role = ROLES[args.role]
    make_trial(role, args.config)
    print(" ".join(f"'{flag}'" if " " in flag else flag for flag in role.flags(args.config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
