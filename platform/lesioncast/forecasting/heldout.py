"""The cases of an evaluation, measured and drawn on Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from lesioncast.cohort.truth import has_truth, true_net2
from lesioncast.covariates import fit_covariates
from lesioncast.evaluation.assess import Tally, Truth, tally
from lesioncast.evaluation.fanout import map_on_actors, with_progress
from lesioncast.evaluation.lesions import lesion_count
from lesioncast.evaluation.outcomes import (
    Outcomes,
    build_measurer,
    chunked,
    evaluable,
    outcomes_of,
)
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.draws import Request, ensembles, plan, seeds_of
from lesioncast.forecasting.engine import build_sampler, device_of
from lesioncast.forecasting.errors import ForecastError
from storage import Case, Store


@dataclass(frozen=True)
class HeldOut:
    """Training cases for the baselines, test cases, and those of them forced onto every arm."""

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    forced: tuple[int, ...]

    def requests(self, *, arms: int) -> list[Request]:
        """Every test case under its own arm, the forced ones under all; none twice."""
        forced = set(self.forced)
        return [
            Request(case.index, arm)
            for case in self.test
            for arm in (range(arms) if case.index in forced else (case.arm_index,))
        ]


def held_out(store: Store, settings: EvaluationSettings) -> HeldOut:
    """The cases of the store that an evaluation can use. ForecastError where a split has none."""
    train, test = (evaluable(store.select(split=split)) for split in ("train", "test"))
    for name, cases in (("training", train), ("test", test)):
        if not cases:
            raise ForecastError(
                f"{store.path}: expected {name} cases with an arm and NET2 at w096, got none; "
                "convert a trial with outcomes, or give store.split a share for them"
            )
    test = spread_out(test, settings.subjects or len(test))
    forced = spread_out(test, settings.counterfactual_subjects)
    return HeldOut(tuple(train), tuple(test), tuple(case.index for case in forced))


def spread_out(cases: Sequence[Case], number: int) -> list[Case]:
    """`number` of the cases, evenly over their order; all where there are fewer."""
    number = min(number, len(cases))
    return [cases[place * len(cases) // number] for place in range(number)]


def measure(
    store: Store, cases: HeldOut, *, workers: int, covariates: Sequence[str] = ()
) -> tuple[Outcomes, Outcomes]:
    """Scalars and outcomes of the training and of the test cases, on Ray actors.

    `covariates` are standardised on the training cases. Raises ConfigError where they have none.
    """
    fitted = fit_covariates(covariates, cases.train)
    chunks = chunked([*cases.train, *cases.test])
    build = partial(build_measurer, store.path)
    pieces = map_on_actors(build, chunks, workers=workers)
    measured = with_progress(pieces, total=len(chunks), label="chunks of cases measured")
    flat = list(chain.from_iterable(measured))
    return outcomes_of(cases.train, flat, fitted), outcomes_of(cases.test, flat, fitted)


def draw_counts(
    store: Store, cases: HeldOut, bundle: Path, *, settings: EvaluationSettings, seed: int
) -> Tally:
    """The lesion counts of every sample that the evaluation asks for, drawn on Ray actors."""
    requests = cases.requests(arms=len(store.spec.arms))
    seeds = seeds_of(cases.test, seed=seed, samples=settings.samples)
    batches = plan(requests, seeds, batch_size=settings.batch_size)
    gpus = settings.gpus_per_worker
    build = partial(build_sampler, bundle, store.path, device=device_of(gpus))
    drawn = map_on_actors(build, batches, workers=settings.workers, gpus_per_worker=gpus)
    counted = with_progress(drawn, total=len(batches), label="batches drawn")
    return tally(ensembles(requests, seeds, counted))


def true_counts(store: Store, cases: HeldOut) -> Truth | None:
    """The true lesions of the forced cases under every arm; None for a trial that is not simulated.

    Raises StorageError where a simulated trial lacks a file.
    """
    bids, arms = Path(store.table.bids), store.spec.arms
    if not has_truth(bids):
        return None
    forced = [case for case in cases.test if case.index in set(cases.forced)]
    return {
        (case.index, arm): lesion_count(mask, store.spec.spacing)
        for case in forced
        for arm, mask in enumerate(true_net2(bids, case.subject, case.grid, arms=arms))
    }
