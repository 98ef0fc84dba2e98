"""The forecast and evaluation jobs end to end, on a small store and a bundle of random weights."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml

from lesioncast.bundle import pretrained
from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.config import load_config
from lesioncast.errors import ForecastError
from lesioncast.evaluation.reporting.json_io import read_report
from lesioncast.evaluation.reporting.markdown.effects import NO_FLOOR
from lesioncast.evaluation.reporting.markdown.report import render_markdown
from lesioncast.evaluation.reporting.summary_page import evaluation_section
from lesioncast.evaluation.run import select_evaluation_cases, true_counts
from lesioncast.forecasting.disclaimers import (
    NOT_EVALUATED,
    SIMULATED_SUBJECTS,
    sessions_note,
)
from lesioncast.forecasting.runtime import build_sampler
from lesioncast.forecasting.sampling import EnsembleRequest, Sample
from lesioncast.jobs import evaluate, forecast
from lesioncast.simulation.ground_truth import RANKS, TRUTH
from storage import StoreError, VisitSchedule, open_store
from storage.trial.description import TrialDescription
from tests.support.bids import write_volume
from tests.support.forecast import GEOMETRY, SLAB, SPEC, write_bundle, write_store

CONFIG = {
    "name": "tiny",
    "arms": list(SPEC.arms),
    "simulation": {"subjects": 8, "shape": [8, 16, 16], "spacing": [3.0, 8.0, 8.0]},
    "store": {"slab": list(SLAB), "spacing": list(SPEC.spacing), "resample": False},
    "unet": {"slices": SLAB[0], "arms": 3, "widths": [8, 16], "groups": 4, "attention_stages": []},
    "pretrain": {"steps": 1},
    "finetune": {"steps": 1},
    "forecast": {"samples": 3, "subjects": 2, "batch_size": 4, "workers": 1},
    "evaluation": {
        "samples": 3, "counterfactual_subjects": 2, "bootstrap": 100, "monte_carlo_runs": 2,
        "workers": 1, "covariates": ["age", "sex"],
    },
}  # fmt: skip

SIXTEEN = tuple(
    Sample(EnsembleRequest(case, arm), seed)
    for seed, (case, arm) in enumerate(product(range(4), (0, 1, 2, 1)))
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a store of four test and eight training cases, a bundle and a configuration."""
    folder = tmp_path_factory.mktemp("jobs")
    write_store(folder / "store.zarr", folder / "bids", test=4, train=8, simulated=True)
    for subject in ("sub-01", "sub-02", "sub-03", "sub-04"):
        write_truth(folder / "bids", subject)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    write_bundle(folder / "bundle")
    write_bundle(folder / "baseline_only", baseline_only=True)
    write_bundle(folder / "with_prior", lesion_loads=(1, 20))
    return folder


@pytest.fixture(scope="module")
def evaluated(ray_cluster: None, root: Path) -> Path:
    """Evaluate copies of the bundles, and return the folder of the copies."""
    folder = root / "evaluated"
    for name in ("bundle", "baseline_only", "with_prior"):
        shutil.copytree(root / name, folder / name)
        paths = ["--bundle", str(folder / name), "--out", str(folder / f"evaluation_{name}")]
        assert evaluate.main(given(root, *paths)) == 0
    return folder


@pytest.fixture
def shipped(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a bundle in the place of the one that comes with lesioncast."""
    folder = tmp_path / "shipped"
    shutil.copytree(root / "bundle", folder)
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    return folder


def write_truth(bids: Path, subject: str) -> None:
    """Write ground truth with two lesions, of which the arms let two, one and none appear."""
    ranks = np.zeros(GEOMETRY.shape, np.uint8)
    middle = tuple(size // 2 for size in GEOMETRY.shape)
    ranks[middle], ranks[middle[0], middle[1], middle[2] + 3] = 1, 2
    stem = bids / TRUTH / subject / "ses-w096/anat" / f"{subject}_ses-w096_{RANKS}"
    write_volume(stem.with_name(f"{stem.name}.nii.gz"), ranks, GEOMETRY)
    counts = dict(zip(SPEC.arms, (2, 1, 0), strict=True))
    stem.with_name(f"{stem.name}.json").write_text(json.dumps({"LesionCounts": counts}))


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def given(root: Path, *extra: str) -> list[str]:
    paths = ["--store", str(root / "store.zarr"), "--bundle", str(root / "bundle")]
    return ["--config", str(root / "tiny.yaml"), *paths, *extra]


@pytest.mark.ray
def test_the_forecast_job_writes_every_named_subject(ray_cluster: None, root: Path) -> None:
    out = root / "forecasts"
    assert forecast.main(given(root, "--out", str(out), "--subjects", "sub-03,sub-02")) == 0
    assert {path.name for path in out.glob("sub-*")} == {"sub-02", "sub-03"}
    record = json.loads((out / "sub-03/sub-03_forecast.json").read_text())
    assert list(record["arms"]) == list(SPEC.arms)
    assert record["bundle"] == load_bundle(root / "bundle").digest
    assert "Trained on 8 training cases of a made-up trial." in record["notes"]
    assert "The subjects are simulated." in record["notes"]
    assert [one["code"] for one in record["warnings"]] == ["typicality_unknown", "not_evaluated"]
    assert record["warnings"][-1]["text"] == NOT_EVALUATED
    assert len(list(out.rglob("*_probseg.nii.gz"))) == 6


def test_a_local_forecast_starts_no_cluster(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("ray.init", start)
    monkeypatch.setattr("ray.remote", start)
    paths = ["--out", str(root / "local"), "--subjects", "sub-03,sub-02", "--local"]
    assert forecast.main(given(root, *paths)) == 0
    assert {path.name for path in (root / "local").glob("sub-*")} == {"sub-02", "sub-03"}


@pytest.mark.ray
def test_a_local_forecast_has_the_bytes_of_the_job_on_ray(ray_cluster: None, root: Path) -> None:
    for folder, flags in (("on_ray", []), ("in_process", ["--local"])):
        paths = ["--out", str(root / folder), "--subjects", "sub-03,sub-02", *flags]
        assert forecast.main(given(root, *paths)) == 0
    on_ray, in_process = tree(root / "on_ray"), tree(root / "in_process")
    assert sum(name.endswith("_probseg.nii.gz") for name in on_ray) == 6
    assert on_ray == in_process


@pytest.mark.ray
def test_an_evaluation_of_the_shipped_bundle_leaves_its_folder_as_it_is(
    ray_cluster: None, root: Path, tmp_path: Path, shipped: Path
) -> None:
    before, out = tree(shipped), tmp_path / "evaluation"
    assert evaluate.main(given(root, "--bundle", "pretrained", "--out", str(out))) == 0
    assert read_report(out / "metrics.json").bundle == load_bundle(shipped).digest
    assert tree(shipped) == before


def test_the_guidance_of_the_shipped_bundle_is_not_chosen_anew(
    root: Path, shipped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(shipped)
    assert evaluate.main(given(root, "--bundle", "pretrained", "--choose-guidance")) == 2
    assert f"got pretrained; copy {shipped} and name the copy" in capsys.readouterr().err
    assert tree(shipped) == before


@pytest.mark.ray
def test_the_evaluation_job_writes_tables_that_follow_from_its_json(evaluated: Path) -> None:
    out = evaluated / "evaluation_bundle"
    report = read_report(out / "metrics.json")
    assert (report.cases.train, report.cases.test) == (8, 4)
    assert report.variants["plain"].activity["pooled"].positives == 2
    assert list(report.variants) == ["plain", "opened", "opened_forecast"]
    assert report.masks is not None
    assert report.masks.groups["pooled"].cases_with_lesions == 2
    assert report.effects is not None
    assert report.effects.reference_arm == "placebo"
    assert report.effects.outcomes.count["ocrelizumab"].true.value == -2.0
    assert report.calibration is None  # the store has no validation cases
    assert report.reliance is None  # a bundle without lesion loads only samples
    assert report.censoring is None  # every case has an outcome
    assert report.participants is not None
    flow = report.participants.total
    assert (flow.allocated, flow.training, flow.test, flow.scored) == (12, 8, 4, 4)
    # Ages are 30, 32 ... 52, those of the four test cases come first; sexes alternate.
    groups = {name: variable.groups for name, variable in report.subgroups.items()}
    assert {name: list(found) for name, found in groups.items()} == {
        "sex": ["F", "M"],
        "age": ["up to 45 years"],
    }
    assert [group.positives for group in groups["sex"].values()] == [0, 2]
    rows = report.activity_by_arm.arms.values()
    assert [row.true_rate for row in rows] == [1.0, 1.0, 0.0]
    assert [row.true for row in report.effects.mean_count.values()] == [2.0, 1.0, 0.0]
    assert list(report.methods)[-2:] == ["regression", "regression_covariates"]
    assert render_markdown(report) == (out / "tables.md").read_text()
    section = evaluation_section(report, heading="Evaluation", figure="evaluation.png")
    assert "4 held-out subjects, 2 of them active" in section
    provenance = report.provenance
    assert (provenance.store, provenance.configuration, provenance.seed) == ("inputs", "tiny", 0)
    assert provenance.trained_on == "Trained on 8 training cases of a made-up trial."
    page = (out / "report.html").read_text()
    assert page.count("<h1>") == 1
    assert page.count("data:image/png;base64,") >= 3  # both active subjects, a quiet one


@pytest.mark.ray
def test_arms_are_compared_on_baseline_images_if_the_bundle_was_trained_for_it(
    evaluated: Path, root: Path
) -> None:
    later, start = (
        read_report(evaluated / f"evaluation_{name}/metrics.json")
        for name in ("bundle", "baseline_only")
    )
    sessions = (later.comparison_sessions, start.comparison_sessions)
    assert sessions == (("w000", "w048"), ("w000",))
    assert later.variants == start.variants  # a case under its own arm is forecast from all images
    sampler = build_sampler(root / "baseline_only", root / "store.zarr", device="cpu")
    every, alone = (
        sampler((Sample(EnsembleRequest(1, 0, sessions), 7),)).masks()
        for sessions in (None, ("w000",))
    )
    assert (every != alone).any()
    assert "before any treatment: 3 samples" in render_markdown(start)


@pytest.mark.ray
def test_arms_are_compared_on_all_test_cases_without_samples_by_a_bundle_with_a_prior(
    evaluated: Path,
) -> None:
    out = evaluated / "evaluation_with_prior"
    report, sampled = (
        read_report(evaluated / f"evaluation_{name}/metrics.json")
        for name in ("with_prior", "bundle")
    )
    assert (report.effects.cases, report.effects.samples) == (4, None)
    assert (sampled.effects.cases, sampled.effects.samples) == (2, 3)
    assert (report.activity_by_arm.cases, report.activity_by_arm.samples) == (4, None)
    assert report.effects.outcomes.count["ocrelizumab"].true.value == -2.0
    # The folder does not hold the settings of a simulation, so that its law is not known.
    assert report.effects.outcomes.count["ocrelizumab"].pehe_floor is None
    assert NO_FLOOR in (out / "tables.md").read_text()
    (head, *rows) = [line.split(",") for line in (out / "cases.csv").read_text().splitlines()]
    assert head[-3:] == [f"p_active_if_{arm}" for arm in SPEC.arms]
    means = [row.p_active.value for row in report.activity_by_arm.arms.values()]
    written = np.array([row[-3:] for row in rows], np.float64)
    assert written.mean(axis=0) == pytest.approx(means, abs=1e-4)


@pytest.mark.ray
def test_a_forecast_from_baseline_images_carries_a_note_or_is_rejected(
    ray_cluster: None, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = root / "compared"
    flags = ["--set", "forecast.sessions=[w000]", "--out", str(out), "--subjects", "sub-03"]
    assert forecast.main(given(root, *flags, "--bundle", str(root / "baseline_only"))) == 0
    record = json.loads((out / "sub-03/sub-03_forecast.json").read_text())
    assert record["sessions"] == ["w000"]
    assert sessions_note(("w000",), VisitSchedule()) in record["notes"]
    (sidecar, *_) = [json.loads(path.read_text()) for path in out.rglob("*_probseg.json")]
    assert [source.split("/")[-1] for source in sidecar["Sources"]] == [
        "sub-03_ses-w000_FLAIR.nii.gz"
    ]
    assert forecast.main(given(root, *flags)) == 1
    assert "expected w000, w048, got w000; to show w000 alone, train" in caplog.text


@pytest.mark.ray
def test_a_forecast_after_the_evaluation_carries_its_warnings(evaluated: Path, root: Path) -> None:
    bundle = evaluated / "bundle"
    # The evaluation's card lies beside the bundle's files and changes none of them.
    assert load_bundle(bundle).digest == load_bundle(root / "bundle").digest
    out = root / "warned"
    flags = ["--bundle", str(bundle), "--out", str(out), "--subjects", "sub-03"]
    assert forecast.main(given(root, *flags)) == 0
    record = json.loads((out / "sub-03/sub-03_forecast.json").read_text())
    unknown, warning = record["warnings"]
    assert (unknown["code"], warning["code"]) == ("typicality_unknown", "trials_not_named")
    sentence = warning["text"]
    assert sentence.startswith("The data name no trial")
    sidecars = [json.loads(path.read_text()) for path in out.rglob("*_probseg.json")]
    assert [sidecar["Warnings"] for sidecar in sidecars] == [[unknown, warning]] * 3
    assert sentence in (bundle / "EVALUATION.md").read_text()


def masks_of_16(root: Path) -> npt.NDArray[np.bool_]:
    """Sample all cases, with alternating arms, in one batch."""
    return build_sampler(root / "bundle", root / "store.zarr", device="cpu")(SIXTEEN).masks()


def test_a_seed_gives_the_same_mask_alone_in_a_batch_and_after_a_restart(
    root: Path, tmp_path: Path
) -> None:
    together = masks_of_16(root)
    assert together.any()
    assert torch.get_num_threads() == 1  # more would sum in another order
    sampler = build_sampler(root / "bundle", root / "store.zarr", device="cpu")
    alone = np.concatenate([sampler((sample,)).masks() for sample in SIXTEEN])
    assert np.array_equal(alone, together)
    code = (
        "import sys, pathlib, numpy, tests.jobs.test_forecast_and_evaluate as module;"
        "numpy.save(sys.argv[2], module.masks_of_16(pathlib.Path(sys.argv[1])))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(root), str(tmp_path / "masks.npy")],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert np.array_equal(np.load(tmp_path / "masks.npy"), together)


def test_a_sampler_rejects_a_store_that_was_converted_again_meanwhile(root: Path) -> None:
    paths = root / "bundle", root / "store.zarr"
    build_sampler(*paths, device="cpu", inputs=open_store(paths[1]).table.inputs)
    with pytest.raises(StoreError, match="it was converted anew meanwhile; run the same"):
        build_sampler(*paths, device="cpu", inputs="before")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slab", (9, 9, 9)),
        ("spacing", (9.0, 9.0, 9.0)),
        ("percentiles", (1.0, 99.0)),
        ("brain_height", 0.4),
        ("apply_brain_mask", False),
        ("arms", ("a", "b", "c")),
    ],
)
def test_a_bundle_for_another_preparation_or_other_arms_is_rejected(
    root: Path, name: str, value: object
) -> None:
    store = open_store(root / "store.zarr")
    bundle = load_bundle(root / "bundle")
    part = "model" if name == "arms" else "store"
    changed = {part: replace(getattr(bundle.config, part), **{name: value})}
    bundle = replace(bundle, config=replace(bundle.config, **changed))
    with pytest.raises(ForecastError, match=rf"bundle's {name} .*convert"):
        check_compatible(bundle, store)


def test_ground_truth_is_read_of_simulated_trials_alone_and_missed_where_it_has_moved(
    root: Path, tmp_path: Path
) -> None:
    store, bundle = open_store(root / "store.zarr"), load_bundle(root / "bundle")
    config = load_config(root / "tiny.yaml")
    cases = select_evaluation_cases(store, config.evaluation)
    moved = Path(shutil.copytree(root / "bids", tmp_path / "moved"))
    real = replace(store, table=replace(store.table, trial=TrialDescription()))
    counts = [
        true_counts(a_store, cases, bids, opening=False)
        for a_store, bids in ((store, root / "bids"), (store, moved), (real, moved))
    ]
    assert counts[0] == counts[1]
    assert counts[0] is not None
    assert counts[2] is None
    for a_store, bids, missed in ((store, moved, False), (store, tmp_path, True)):
        disclaimers = evaluate.evaluation_context(config, a_store, bundle, bids).disclaimers
        assert SIMULATED_SUBJECTS in disclaimers
        assert (evaluate.NO_GROUND_TRUTH in disclaimers) == missed
    disclaimers = evaluate.evaluation_context(config, real, bundle, tmp_path).disclaimers
    assert {SIMULATED_SUBJECTS, evaluate.NO_GROUND_TRUTH}.isdisjoint(disclaimers)


def test_an_evaluation_on_cases_of_the_training_is_refused(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(root / "store.zarr")
    write_bundle(tmp_path / "bundle", trained_on=store.cases[3:])
    assert evaluate.main([*given(root), "--bundle", str(tmp_path / "bundle")]) == 1
    assert "got one that was trained on 1 of them, such as sub-04" in caplog.text


def test_a_covariate_that_the_store_lacks_is_a_usage_error(root: Path) -> None:
    assert evaluate.main(given(root, "--set", "evaluation.covariates=[weight]")) == 2


def test_missing_input_ends_a_job_with_a_message(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert forecast.main(given(root, "--subjects", "sub-99")) == 1
    assert "sub-99" in caplog.text
    assert evaluate.main([*given(root), "--bundle", str(root / "nothing")]) == 1
    assert "nothing: expected a bundle" in caplog.text
