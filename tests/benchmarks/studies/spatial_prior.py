"""Score the spatial prior's maps: nats over the atlas for each part of the inputs.

    PYTHONPATH=.:platform python tests/benchmarks/studies/spatial_prior.py --store STORE

Fit the prior, the atlas and the distance rings to the store's training cases with new lesions, and
score their maps on its validation cases with new lesions, given how many lesion voxels each has.
The exact law of a simulated trial is the bar: a share is a map's gain over the gain of that law.
The last rows exchange images between cases of an arm. Intervals are 95 % bootstrap intervals over
cases. No test case is read. `--config` names the configuration that simulated the trial.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lesioncast.arrays import Mask, evenly_spaced
from lesioncast.config import load_config
from lesioncast.evaluation.features.image_features import lesion_voxels
from lesioncast.evaluation.features.outcomes import cases_with_outcome
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_mean, estimate_ratio
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.where.atlas import atlas_of, sum_of_masks
from lesioncast.evaluation.where.case_scores import exact_law
from lesioncast.evaluation.where.density import brain_of, density_in
from lesioncast.evaluation.where.map_scores import MapScore, score_map
from lesioncast.evaluation.where.rings import (
    fit_ring_rates,
    older_lesions,
    ring_counts,
    ring_of_voxels,
)
from lesioncast.evaluation.where.run import RING_CASES, exchange_partners
from lesioncast.imaging.channels import encode_case, parse_channels
from lesioncast.imaging.lesions import components
from lesioncast.priors.spatial.fit import SpatialFitSettings, fit_spatial_prior
from lesioncast.priors.spatial.inputs import (
    CHANNELS,
    FLAIR_CHANNELS,
    MASK_CHANNELS,
    SpatialCase,
    SpatialInputs,
)
from lesioncast.priors.spatial.prior import SpatialPrior
from lesioncast.training.spatial.fit import has_new_lesions
from storage import Case, CaseArrays, Store, open_store, parse_location

Volume = npt.NDArray[np.floating]
ALL, NO_LABELS, EXACT = "parcellation, FLAIR, masks", "FLAIR, masks", "exact law"
# Channels of each row without parcellation.
PARTS = {
    NO_LABELS: CHANNELS,
    "FLAIR alone": FLAIR_CHANNELS,
    "masks alone": MASK_CHANNELS,
    "FLAIR, masks of w000": tuple(name for name in CHANNELS if name.startswith("w000/")),
}
OTHER_IMAGES, OTHER_HISTORY = "images of another patient", "masks of another patient"


class StudyCase(NamedTuple):
    """A case with new lesions: its record, its arrays, and the same as input of the prior."""

    case: Case
    arrays: CaseArrays
    spatial: SpatialCase


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, score, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=parse_location, required=True)
    parser.add_argument("--config", type=Path, default=Path("jobs/configs/demo.yaml"))
    parser.add_argument("--set", action="append", default=[], help="a key of the configuration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=0, help="training cases to read; 0 is all")
    parser.add_argument("--cases", type=int, default=0, help="validation cases to read; 0 is all")
    args = parser.parse_args(argv)
    store, simulation = open_store(args.store), load_config(args.config, args.set).simulation
    train = active_cases(store, "train", args.train)
    start = time.process_time()
    prior = fit_spatial_prior([case.spatial for case in train], SpatialFitSettings(), args.seed)
    print(f"Fitted to {len(train)} cases in {time.process_time() - start:.0f} CPU-s.")
    baselines = baseline_maps(store, train)
    del train
    scored = active_cases(store, "val", args.cases)
    rows: dict[str, list[MapScore]] = {}
    others = partners(scored)
    seconds = 0.0
    for case, other in zip(scored, others, strict=True):
        start = time.process_time()
        maps = {name: np.exp(one) for name, one in prior_maps(prior, case, other).items()}
        seconds += time.process_time() - start
        maps |= baselines(case)
        law = exact_law(simulation, case.case, case.spatial.outcome)
        maps |= {} if law is None else {EXACT: law.density()}
        for name, score in scores_of(case, maps).items():
            rows.setdefault(name, []).append(score)
    maps_of_prior = 1 + len(PARTS) + 2
    print(f"{1000 * seconds / len(scored) / maps_of_prior:.0f} CPU-ms a map.", end="\n\n")
    print("\n".join(table(rows)))
    return 0


def active_cases(store: Store, split: str, number: int) -> list[StudyCase]:
    """Return those of `number` cases of a split that have new lesions; 0 reads all cases."""
    channels = parse_channels(CHANNELS)
    cases = cases_with_outcome(store.select(split=split))
    found = []
    for case in filter(has_new_lesions, evenly_spaced(cases, number or len(cases))):
        arrays = store.read(case.index)
        outcome = encode_case(arrays, channels=parse_channels(["w096/net2"]))[0] > 0
        if outcome.any():
            volumes = zip(CHANNELS, encode_case(arrays, channels=channels), strict=True)
            shown = {name: volume.astype(np.float16) for name, volume in volumes if volume.any()}
            labels = arrays.parcellation if case.parcellation else None
            inputs = SpatialInputs(shown, store.spec.spacing, labels)
            found.append(StudyCase(case, arrays, SpatialCase(inputs, outcome)))
    return found


def partners(cases: Sequence[StudyCase]) -> list[StudyCase | None]:
    """Return, for each case, the next of its arm; None for the only one of an arm."""
    arm = np.array([case.case.arm_index for case in cases])
    partner = exchange_partners(arm, np.ones(len(cases), bool))
    return [cases[partner[row]] if row in partner else None for row in range(len(cases))]


def prior_maps(prior: SpatialPrior, case: StudyCase, other: StudyCase | None) -> dict[str, Volume]:
    """Return the prior's log densities from the case's inputs, from parts, and from exchanged ones.

    A case without a partner keeps its own images in the rows of exchanged ones.
    """
    inputs, lent = case.spatial.inputs, (other or case).spatial.inputs
    reduced = {
        name: SpatialInputs(
            {key: volume for key, volume in inputs.channels.items() if key in channels},
            inputs.spacing,
        )
        for name, channels in PARTS.items()
    }
    own_flair = {key: volume for key, volume in inputs.channels.items() if key in FLAIR_CHANNELS}
    lent_masks = {key: volume for key, volume in lent.channels.items() if key in MASK_CHANNELS}
    history = own_flair | lent_masks
    exchanged = {OTHER_HISTORY: replace(inputs, channels=history), OTHER_IMAGES: lent}
    return {
        name: prior.log_density(one) for name, one in ({ALL: inputs} | reduced | exchanged).items()
    }


def baseline_maps(
    store: Store, train: Sequence[StudyCase]
) -> Callable[[StudyCase], Mapping[str, Volume]]:
    """Return a function that gives the atlas and the atlas with distance rings for a case."""
    spacing = store.spec.spacing
    voxels = [lesion_voxels(case.spatial.outcome) for case in train]
    atlas = atlas_of(sum_of_masks(voxels, store.spec.slab), spacing)
    rates = fit_ring_rates(
        [
            ring_counts(train[row].arrays, voxels[row], atlas, spacing)
            for row in evenly_spaced(range(len(train)), RING_CASES)
        ]
    )

    def maps(case: StudyCase) -> dict[str, Volume]:
        ring = ring_of_voxels(older_lesions(case.arrays), spacing)
        return {"atlas": atlas, "atlas x distance rings": atlas * rates[ring]}

    return maps


def scores_of(case: StudyCase, maps: Mapping[str, Volume]) -> dict[str, MapScore]:
    """Score the maps of one case over its brain."""
    brain: Mask = brain_of(case.arrays)
    labels = components(case.spatial.outcome)[0][brain]
    atlas = density_in(brain, maps["atlas"])
    return {name: score_map(density_in(brain, one), atlas, labels) for name, one in maps.items()}


def table(rows: Mapping[str, Sequence[MapScore]]) -> list[str]:
    """Return the table's lines; the last three rows also tell what is lost to the own images."""
    nats = {name: np.array([score.nats_case for score in scores]) for name, scores in rows.items()}
    weights = Bootstrap(draws=2000, seed=0).weights(len(nats[ALL]))
    lines = [
        f"{len(nats[ALL])} cases",
        "| map | nats a case over the atlas | share of the exact gain | AUC | below own inputs |",
        "|---|---|---|---|---|",
    ]
    for name, scores in rows.items():
        share = show(estimate_ratio(nats[name], nats[EXACT], weights), 2) if EXACT in nats else ""
        lost = (
            show(estimate_mean(nats[ALL] - nats[name], weights), 1)
            if name in (OTHER_IMAGES, OTHER_HISTORY)
            else ""
        )
        auc = np.array([score.auc for score in scores])
        lines.append(
            f"| {name} | {show(estimate_mean(nats[name], weights), 1)} | {share} "
            f"| {show(estimate_mean(auc, weights), 3)} | {lost} |"
        )
    return lines


def show(estimate: Estimate, digits: int) -> str:
    """Format an estimate with its interval."""
    low, high = estimate.low, estimate.high
    assert estimate.value is not None
    assert low is not None
    assert high is not None
    return f"{estimate.value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    sys.exit(main())
