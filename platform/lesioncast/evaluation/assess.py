"""The evaluation as one pure function: outcomes and sampled counts in, the record out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.baselines import arm_statistics
from lesioncast.evaluation.ensembles import Ensemble
from lesioncast.evaluation.lesions import OPENING_MM, opening_element
from lesioncast.evaluation.methods import Method, baseline_methods, ensemble_methods
from lesioncast.evaluation.outcomes import Cases, Outcomes
from lesioncast.evaluation.published import BASELINE, PROPOSED, SOURCE
from lesioncast.evaluation.report import Bootstrap, ladder_record, variant_record
from lesioncast.evaluation.settings import EvaluationSettings

Floats = npt.NDArray[np.float64]
Tally = Mapping[tuple[int, int], npt.NDArray[np.int64]]
"""(case, arm) -> lesions of each sample, [2, k]: as drawn, after the opening."""
Truth = Mapping[tuple[int, int], int]
"""(case, arm) -> the lesions that a simulated patient would have had under the arm, as drawn."""

SCHEMA = 1
PLAIN = "plain"
VARIANTS = {PLAIN: (False, False), "opened": (True, True), "opened_forecast": (True, False)}
"""Name -> whether the opening is applied to the forecast, to the truth."""


@dataclass(frozen=True)
class Context:
    """What an evaluation is of: names and digests that its record carries."""

    arms: tuple[str, ...]
    spacing: tuple[float, float, float]
    bundle: str
    seed: int
    notices: tuple[str, ...] = ()
    warnings: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Assessment:
    """The record of metrics.json; cases and methods of the plain count, for table and figure."""

    record: dict[str, Any]
    cases: Cases
    methods: tuple[Method, ...]
    forced: Floats | None


def tally(ensembles: Iterable[Ensemble]) -> Tally:
    """The counts of each ensemble; its masks are let go."""
    return {(each.case, each.arm): np.stack([each.plain, each.opened]) for each in ensembles}


def assess(
    train: Outcomes,
    test: Outcomes,
    counts: Tally,
    *,
    forced: Sequence[int],
    context: Context,
    settings: EvaluationSettings,
    truth: Truth | None = None,
) -> Assessment:
    """Scores the forecast of the test cases beside the baselines fitted on the training cases.

    `counts` holds every test case under its own arm, and the cases in `forced` under every arm, as
    does `truth` where it is known.
    """
    bootstrap = Bootstrap(settings.bootstrap, context.seed)
    idle = opening_element(context.spacing) == (1, 1, 1)
    ladder, p_forced = _ladder(
        train, counts, forced, truth=truth, context=context, bootstrap=bootstrap
    )
    by_variant = {
        name: _methods(train, test, counts, name=name, context=context, settings=settings)
        for name in ([PLAIN] if idle else VARIANTS)
    }
    cases, methods = by_variant[PLAIN]
    record = {
        "schema": SCHEMA,
        "notices": list(context.notices),
        "warnings": context.warnings,
        "provenance": context.provenance,
        "bundle": context.bundle,
        "seed": context.seed,
        "samples": settings.samples,
        "bootstrap": settings.bootstrap,
        "arms": list(context.arms),
        "cases": {"train": len(train.case), "test": len(test.case)},
        "opening": {
            "mm": OPENING_MM,
            "element": list(opening_element(context.spacing)),
            "idle": idle,
        },
        "methods": {method.key: method.label for method in methods},
        "variants": {
            name: variant_record(*scored, arms=context.arms, bootstrap=bootstrap)
            for name, scored in by_variant.items()
        },
        "ladder": ladder,
        "published": {"source": SOURCE, "proposed": PROPOSED, "baseline": BASELINE},
    }
    return Assessment(record, cases, methods, p_forced)


def _methods(
    train: Outcomes,
    test: Outcomes,
    counts: Tally,
    *,
    name: str,
    context: Context,
    settings: EvaluationSettings,
) -> tuple[Cases, tuple[Method, ...]]:
    opening, opening_truth = VARIANTS[name]
    known, asked = (outcomes.cases(opening=opening_truth) for outcomes in (train, test))
    sampled = np.array(
        [counts[key][int(opening)] for key in zip(test.case, test.arm.tolist(), strict=True)],
        np.float64,
    )
    return asked, (
        *ensemble_methods(sampled, asked.count),
        *baseline_methods(
            known, asked, arms=context.arms, runs=settings.monte_carlo_runs, seed=context.seed
        ),
    )


def _ladder(
    train: Outcomes,
    counts: Tally,
    forced: Sequence[int],
    *,
    truth: Truth | None,
    context: Context,
    bootstrap: Bootstrap,
) -> tuple[dict[str, Any] | None, Floats | None]:
    """The record of the forced cases and their P(active) [case, arm]; None where there are none."""
    if not forced:
        return None, None
    arms = range(len(context.arms))
    sampled = np.array([[counts[case, arm][0] for case in forced] for arm in arms], np.float64)
    true = None
    if truth is not None:
        true = np.array([[truth[case, arm] for case in forced] for arm in arms], np.float64)
    rate = arm_statistics(train.arm, train.plain, arms=len(context.arms)).activity
    record = ladder_record(
        sampled, arms=context.arms, train_rate=rate, bootstrap=bootstrap, true=true
    )
    return record, (sampled > 0).mean(axis=2).T
