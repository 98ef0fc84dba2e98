"""Score samples as whole masks beside draws from the same priors without networks.

    PYTHONPATH=.:platform python tests/benchmarks/whole_masks/study.py \
        --bundle out/demo/bundle --store STORE

Each active validation case gets masks under the arm that it received. The seed of a sample draws
its lesion load from the prognostic prior; independent voxels, stored lesions and the networks place
as many lesion voxels by the same spatial prior. The exact law of the simulation places as many
lesions as the stored ones, and once more with the number that it draws itself: it knows the
patient's frailty.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lesioncast.arrays import Floats, Mask, evenly_spaced
from lesioncast.bundle.bundle import Bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.config import load_config
from lesioncast.diffusion.settings.process import SamplerConfig
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.evaluation.where.case_scores import exact_law, masks_of
from lesioncast.evaluation.where.kernel_score import kernel_scores_of_empty
from lesioncast.evaluation.where.mask_draws import StoredLesions
from lesioncast.simulation.settings import SimulationSettings
from storage import Case, Store
from tests.benchmarks.sampling.solvers import observed_mask
from tests.benchmarks.sampling.study_cli import load_study, study_parser
from tests.benchmarks.whole_masks.classifier import lesion_features, patient_volumes
from tests.benchmarks.whole_masks.draws import (
    NETWORKS,
    Drawn,
    Kept,
    Patient,
    draw_networks,
    draw_simple,
    patient_of,
)
from tests.benchmarks.whole_masks.scores import MaskSummary, case_scores, summarise
from tests.benchmarks.whole_masks.tables import Scored, tables

TOGETHER = 8  # cases whose samples share forward passes


@dataclass(frozen=True)
class Study:
    """What all cases of a study share."""

    bundle: Bundle
    store: Store
    stored: StoredLesions
    #: Settings of a simulated trial; None leaves its law out.
    simulation: SimulationSettings | None
    sampler: SamplerConfig
    samples: int
    #: Whether samples have the observed lesion load in place of the one that their seed draws.
    observed_load: bool
    kept: Kept | None

    def patient(self, case: Case) -> Patient:
        """Return what the draws of a case start from."""
        observed = observed_mask(self.store, case) if self.observed_load else None
        return patient_of(self.bundle, self.store, case, samples=self.samples, observed=observed)

    def networks(self, cases: Sequence[Case]) -> list[Drawn]:
        """Return the networks' masks of each case."""
        settings = (
            self.bundle.path,
            self.sampler,
            self.samples,
            self.observed_load,
            self.store.path,
        )
        done = [self._read(case, settings) for case in cases]
        missing = [case for case, one in zip(cases, done, strict=True) if one is None]
        drawn: dict[int, Drawn] = {}
        for start in range(0, len(missing), TOGETHER):
            group = missing[start : start + TOGETHER]
            masks = draw_networks(self.bundle, [self.patient(case) for case in group], self.sampler)
            for case, one in zip(group, masks, strict=True):
                drawn[case.index] = one
                if self.kept is not None:
                    self.kept.write(self.kept.path(case, settings), {NETWORKS: one})
            print(
                f"{start + len(group)} of {len(missing)} cases drawn", file=sys.stderr, flush=True
            )
        return [
            drawn[case.index] if one is None else one[NETWORKS]
            for case, one in zip(cases, done, strict=True)
        ]

    def simple(self, case: Case, observed: Mask) -> dict[str, Drawn]:
        """Return the masks of the other methods."""
        settings = (
            self.bundle.path, self.samples, self.observed_load, self.store.path,
            self.simulation,
        )  # fmt: skip
        done = self._read(case, settings)
        if done is None:
            law = self.simulation and exact_law(self.simulation, case, observed)
            done = draw_simple(self.patient(case), self.stored, law)
            if self.kept is not None:
                self.kept.write(self.kept.path(case, settings), done)
        return done

    def _read(self, case: Case, settings: object) -> dict[str, Drawn] | None:
        return None if self.kept is None else self.kept.read(self.kept.path(case, settings))


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, score, and print the tables."""
    args = parse(argv)
    torch.set_num_threads(1)
    store, bundle, cases = load_study(args)
    check_compatible(bundle, store)
    if bundle.base is None:
        raise SystemExit(f"{args.bundle}: expected a bundle with a spatial prior, got none")
    train = [observed_mask(store, case) for case in cases_with_outcome(store.select(split="train"))]
    factors = [float(one) for one in args.autoguidance.split(",")] if args.autoguidance else None
    changes = {
        "num_steps": args.steps, "eta": args.eta, "logsnr_min": args.start,
        "autoguidance": None if factors is None else tuple(factors),
    }  # fmt: skip
    sampler = replace(
        bundle.config.sampler, **{key: value for key, value in changes.items() if value is not None}
    )
    simulation = load_config(args.config, args.set).simulation
    study = Study(
        bundle=bundle,
        store=store,
        stored=StoredLesions.of_masks(train),
        simulation=simulation if store.table.trial.simulated else None,
        sampler=sampler,
        samples=args.samples,
        observed_load=args.observed_load,
        kept=None if args.keep is None else Kept(args.keep),
    )
    active = [case for case in cases if observed_mask(store, case).any()]
    active = evenly_spaced(active, args.active or len(active))
    print(f"{len(active)} active cases of {args.split}, {args.samples} samples a case\n")
    print("\n\n".join(tables(score(study, active))))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = study_parser(__doc__, cases=10000, split="val")
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], help="a key of the configuration")
    parser.add_argument("--active", type=int, default=0, help="active cases; 0 is all")
    parser.add_argument("--samples", type=int, default=4, help="a case")
    parser.add_argument("--observed-load", action="store_true", help="give every method the load")
    parser.add_argument("--keep", type=Path, help="folder of drawn masks, which are read again")
    parser.add_argument("--autoguidance", help="factors, with commas; default: the bundle's")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--eta", type=float)
    parser.add_argument("--start", type=float, help="logsnr_min")
    return parser.parse_args(argv)


def score(study: Study, cases: Sequence[Case]) -> Scored:
    """Draw and score the masks of all methods."""
    store, spacing = study.store, study.store.spec.spacing
    networks = study.networks(cases)
    by_case: dict[str, list[Floats]] = {}
    summaries: dict[str, list[list[MaskSummary]]] = {}
    features: dict[str, list[Floats]] = {}
    observed, of_empty, observed_features = [], [], []
    for case, of_networks in zip(cases, networks, strict=True):
        truth = observed_mask(store, case).astype(bool)
        observed.append(summarise(truth, spacing))
        of_empty.append(kernel_scores_of_empty(truth, spacing))
        density = study.patient(case).density
        volumes = patient_volumes(store.read(case.index), density, spacing)
        observed_features.append(lesion_features(truth, volumes))
        drawn = study.simple(case, truth) | {NETWORKS: of_networks}
        for method, one in drawn.items():
            masks = masks_of(one, truth.shape)
            sampled = [summarise(mask, spacing) for mask in masks]
            summaries.setdefault(method, []).append(sampled)
            scores = case_scores(masks, truth, spacing, (sampled, observed[-1]))
            by_case.setdefault(method, []).append(scores)
            described = np.concatenate([lesion_features(mask, volumes) for mask in masks])
            features.setdefault(method, []).append(described)
    return Scored(
        {method: np.array(rows) for method, rows in by_case.items()},
        np.array(of_empty),
        summaries,
        observed,
        features,
        observed_features,
    )


if __name__ == "__main__":
    sys.exit(main())
