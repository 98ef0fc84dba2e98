"""Compare two ways to scale the sessions of a patient: each by its own range, or all by w000's.

Tissue outside lesions should not change between two sessions. For each subject the script scales
the FLAIR of w000 and w048 both ways and takes the difference w048 - w000 outside all lesion masks.
Its mean is a change of the overall intensity. Its standard deviation is the noise in which a new
lesion must be found. `--gain` multiplies w048 by a random factor, as another scanner does.

    PYTHONPATH=.:platform python tests/benchmarks/data/intensity_ranges.py BIDS --gain 0.2
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storage.layout import BASELINE, CURRENT, MASKS
from storage.nifti.io import read_volume
from storage.preprocess.normalise import intensity_range, scale_flair
from storage.preprocess.tissue import tissue_mask
from storage.settings import StoreSettings, TrialLayout
from storage.trial.dataset import TrialSubject, scan_trial
from tests.benchmarks.data.tables import table

PERCENTILES = StoreSettings((1, 1, 1), (1.0, 1.0, 1.0), resample=True).percentiles
OWN, COMMON = "each its own", f"that of {BASELINE}"
HEAD = ("range", "|mean|", "standard deviation")

Volume = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """Mean and standard deviation of w048 - w000 outside lesions, in units of [-1, 1]."""

    mean: float
    sd: float


@dataclass(frozen=True)
class SessionPair:
    """FLAIR of w000 and w048 with their tissue, and the lesions of both, all [s, h, w]."""

    flair: tuple[Volume, Volume]
    tissue: tuple[Mask, Mask]
    lesions: Mask


def read_pair(subject: TrialSubject) -> SessionPair:
    """Read a subject's sessions; the tissue is the brain mask if there is one."""
    before, after = (_read(subject, session, "flair") for session in (BASELINE, CURRENT))
    assert before is not None
    assert after is not None
    brain = _read(subject, CURRENT, "brain_mask")
    first, second = (tissue_mask(each) if brain is None else brain != 0 for each in (before, after))
    lesions = np.zeros(before.shape, bool)
    for session in (BASELINE, CURRENT):
        for kind in MASKS:
            mask = _read(subject, session, kind)
            if mask is not None:
                lesions |= mask != 0
    return SessionPair((before, after), (first, second), lesions)


def _read(subject: TrialSubject, session: str, channel: str) -> Volume | None:
    source = subject.source(session, channel)
    return None if source is None else read_volume(source).data.astype(np.float32)


def differences(pair: SessionPair, *, gain: float = 1.0) -> dict[str, Difference]:
    """Return the difference of a pair under both ways, after w048 was multiplied by `gain`."""
    before, after = pair.flair[0], pair.flair[1] * np.float32(gain)
    own = [
        intensity_range(image, tissue, percentiles=PERCENTILES)
        for image, tissue in zip((before, after), pair.tissue, strict=True)
    ]
    compared = pair.tissue[0] & pair.tissue[1] & ~pair.lesions
    first = scale_flair(before, pair.tissue[0], limits=own[0])[compared]
    result = {}
    for name, limits in ((OWN, own[1]), (COMMON, own[0])):
        change = scale_flair(after, pair.tissue[1], limits=limits)[compared] - first
        result[name] = Difference(float(change.mean()), float(change.std()))
    return result


def compare(pairs: Sequence[SessionPair], *, gain: float, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield a row a way: the median over subjects and, in brackets, the quartiles."""
    factors = np.exp(gain * np.random.default_rng(seed).standard_normal(len(pairs)))
    measured = [
        differences(pair, gain=float(factor)) for pair, factor in zip(pairs, factors, strict=True)
    ]
    for name in (OWN, COMMON):
        yield (
            name,
            _spread([abs(each[name].mean) for each in measured]),
            _spread([each[name].sd for each in measured]),
        )


def _spread(values: Sequence[float]) -> str:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bids", type=Path)
    parser.add_argument("--gain", type=float, default=0.0, help="sd of the logarithm of the factor")
    parser.add_argument("--subjects", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    subjects = scan_trial(args.bids, TrialLayout())[: args.subjects]
    pairs = [read_pair(subject) for subject in subjects]
    print(f"{len(pairs)} subjects, gain {args.gain:g}\n")
    print(table(HEAD, list(compare(pairs, gain=args.gain, seed=args.seed))))


if __name__ == "__main__":
    main()
