"""Studies choose by validation cases; the trial of the final test is kept from all of them."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest

from lesioncast.calibration.conformal import LogCountForecast
from lesioncast.calibration.fit import calibrate
from lesioncast.config import load_config
from lesioncast.evaluation.features.outcomes import EvaluationCases
from tests.benchmarks.prognostic_prior.closed_form_scores import calibration_lines, score_tables
from tests.benchmarks.studies.bayes_optimal import Forecast
from tests.benchmarks.studies.covariates import parse_study
from tests.benchmarks.studies.trials import CONFIG, FINAL_TEST, ROLES, VALIDATION, study_seed

ROOT = Path(__file__).resolve().parents[2]
STUDIES = [
    path
    for name in ("studies", "prognostic_prior", "sampling", "calibration")
    for path in (Path(__file__).parent / name).glob("*.py")
]


def test_every_role_has_a_seed_of_its_own_and_enough_cases() -> None:
    trained_on = {
        load_config(path).simulation.seed for path in (ROOT / "jobs" / "configs").glob("*.yaml")
    }
    seeds = [role.seed for role in ROLES.values()]
    assert len({*seeds, *trained_on}) == len(seeds) + len(trained_on)
    assert min(role.calibration for role in ROLES.values()) >= 1000
    assert (VALIDATION.scored, FINAL_TEST.scored) == (1000, 4000)


@pytest.mark.parametrize("role", ROLES.values(), ids=ROLES)
def test_the_flags_of_a_role_give_its_trial_and_splits(role: type[FINAL_TEST]) -> None:
    overrides = [flag.removeprefix("--set=") for flag in role.flags(ROOT / CONFIG)[1:]]
    config = load_config(ROOT / CONFIG, overrides)
    assert (config.name, config.simulation.seed) == (role.name, role.seed)
    sizes = [share * config.simulation.subjects for share in config.store.split_fractions]
    assert sizes == pytest.approx([role.train, role.calibration, role.scored])
    assert role.store(ROOT / CONFIG) == config.paths.store


def test_no_study_uses_the_seed_of_the_final_test(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_study("", [], train=1, test=1).seed != FINAL_TEST.seed
    with pytest.raises(argparse.ArgumentTypeError, match="kept for the final test"):
        study_seed(str(FINAL_TEST.seed))
    with pytest.raises(SystemExit):
        parse_study("", ["--seed", str(FINAL_TEST.seed)], train=1, test=1)
    assert "kept for the final test" in capsys.readouterr().err
    others = [path for path in STUDIES if path.name != "trials.py"]
    assert not [path for path in others if str(FINAL_TEST.seed) in path.read_text()]


def test_no_study_scores_the_test_split_of_the_trial_that_a_bundle_was_trained_on() -> None:
    """`ablations.py` reads the test split of the trial `validation`."""
    scoring = {path.name for path in STUDIES if re.search('split="test"', path.read_text())}
    assert scoring == {"ablations.py"}
    source = (Path(__file__).parent / "studies" / "ablations.py").read_text()
    assert (
        'open_store(study.scored)\n    cases = cases_with_outcome(opened.select(split="test"'
        in (source)
    )
    assert "scored=VALIDATION.store" in source


def test_the_table_gives_an_oracle_a_constant_and_a_shuffle_what_they_must_have() -> None:
    rng = np.random.default_rng(0)
    true = rng.poisson(1.0, 600) * (rng.random(600) < 0.5) * 1.0
    mixed = rng.permutation(true)
    active = (true > 0).astype(float)
    rows = list(
        score_tables(
            {
                "constant": Forecast(np.full(600, active.mean()), np.zeros(600)),
                "shuffle": Forecast((mixed > 0).astype(float), mixed),
                "oracle": Forecast(active, true),
            },
            true,
        )
    )
    cells = {row.split("|")[1].strip(): row.split("|")[2:] for row in rows}
    assert f"600 cases, {int(active.sum())} active" in cells
    assert [cell.split()[0] for cell in cells["oracle"][:4]] == ["1.000", "1.000", "0.000", "0.000"]
    assert cells["constant"][0].split()[0] == "0.500"
    rate = active.mean()
    assert float(cells["constant"][2].split()[0]) == pytest.approx(rate * (1 - rate), abs=6e-4)
    low, high = map(float, re.findall(r"\(([\d.]+) to ([\d.]+)\)", cells["shuffle"][0])[0])
    assert low < 0.5 < high
    assert cells["oracle minus constant"][0].split()[0] == "0.5000"


def test_the_calibration_of_an_oracle_covers_all_cases_without_width() -> None:
    true = np.random.default_rng(1).poisson(1.0, 200) * 1.0
    cases = EvaluationCases(("",) * 200, np.zeros(200, int), np.zeros((200, 1)), true)
    exact = LogCountForecast(np.log1p(true), np.zeros(200))
    lines = list(calibration_lines(calibrate(true, exact, true - 0.5), cases, exact))
    assert len(lines) == 3
    assert all(
        "1.000 (1.000 to 1.000) of the test cases, mean width 0.00" in one for one in lines[1:]
    )
