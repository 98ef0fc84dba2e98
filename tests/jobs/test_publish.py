"""`lesioncast publish` writes a checked copy of a bundle with a card in the form of MONAI's."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from monai.bundle.properties import MetaProperties

from lesioncast.bundle.bundle import load_bundle_prior, save_same_weights
from lesioncast.bundle.description import bundle_digest, describe_bundle
from lesioncast.bundle.evaluation_card import CARD, EVALUATION, read_evaluation_card
from lesioncast.bundle.typicality import TYPICALITY_FILE, read_typicality, write_typicality
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.provenance import Provenance
from lesioncast.evaluation.reporting.json_io import report_to_json
from lesioncast.evaluation.reporting.monai_metadata import METADATA, read_metadata, shorten_paths
from lesioncast.jobs import publish
from lesioncast.training.data.typicality import fit_typicality
from lesioncast.training.lesion_load_prior.bundle_calibration import calibrate_on_split
from tests.evaluation.test_report import TEST, certain, evaluated
from tests.support.forecast import write_bundle, write_store

METRICS = {
    "data": "8 training cases of a made-up trial.",
    "cases": [],
    "seed": 7,
    "stages": {name: {"step": 6, "loss": 0.5} for name in ("pretrain", "finetune")},
}
LOG = """Setting up .venv ...
12:21:20 command: lesioncast pretrain --config demo
12:21:21 lesioncast from /home/somebody/lesioncast
\x1b[36m(RayTrainWorker pid=8290)\x1b[0m pretrain: step 6/6  loss 0.5
12:29:50 command: lesioncast finetune --config demo
12:29:51 command: lesioncast finetune --config demo
12:30:00 bundle /home/somebody/lesioncast/out/demo/bundle (0123456789ab)
"""
# Of the schema that the metadata names.
REQUIRED = {
    "schema", "version", "monai_version", "pytorch_version", "numpy_version",
    "required_packages_version", "task", "description", "authors", "copyright",
    "network_data_format",
}  # fmt: skip
REQUIRED_OF_TENSORS = {
    "type", "format", "num_channels", "spatial_shape", "dtype", "value_range",
}  # fmt: skip


@pytest.fixture(scope="module")
def report() -> EvaluationReport:
    provenance = Provenance(
        date="2026-12-01",
        command="lesioncast evaluate --config demo --store /trials/new/store.zarr",
        configuration="demo",
        seed=0,
        bundle="",
        trained_on="",
        store="another trial",
        code="lesioncast 0.2.0",
        libraries={},
    )
    made = evaluated(TEST, certain(TEST, TEST.plain)).report
    return replace(made, provenance=provenance)


@pytest.fixture
def folder(tmp_path: Path, report: EvaluationReport) -> Path:
    """Write a calibrated bundle, its evaluation on another trial, and the log of its training."""
    store = write_store(tmp_path / "store.zarr", tmp_path / "bids", test=10)
    write_bundle(tmp_path / "parent", lesion_loads=(1, 4), simulated=True)
    parent = load_bundle_prior(tmp_path / "parent")
    digest = save_same_weights(
        tmp_path / "bundle",
        parent,
        config=parent.config,
        metrics=METRICS,
        calibration=calibrate_on_split(parent.priors, store, parent.config.model, split="test"),
    )
    write_typicality(tmp_path / "bundle", digest, fit_typicality(store, store.cases))
    write_report(tmp_path, replace(report, bundle=digest))
    (tmp_path / "training.log").write_text(LOG)
    return tmp_path


def write_report(folder: Path, report: EvaluationReport) -> None:
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "evaluation" / "metrics.json").write_text(report_to_json(report))


def run(folder: Path, *, version: str = "1.0.0", change: str = "First version.") -> int:
    return publish.main(
        [
            *(str(folder / "bundle"), "--evaluation", str(folder / "evaluation")),
            *("--log", str(folder / "training.log"), "--output", str(folder / "published")),
            *("--release", version, "--change", change),
        ]
    )


def test_the_copy_has_the_same_digest_and_says_how_it_was_made(
    folder: Path, report: EvaluationReport
) -> None:
    before = {path.name for path in (folder / "bundle").iterdir()}
    assert run(folder) == 0
    assert {path.name for path in (folder / "bundle").iterdir()} == before
    published = folder / "published"
    assert {path.name for path in published.iterdir()} == before | {
        METADATA, CARD, EVALUATION, "training.log",
    }  # fmt: skip
    digest = bundle_digest(folder / "bundle")
    assert bundle_digest(published) == digest
    assert read_typicality(published, digest) is not None
    card = read_evaluation_card(published, digest)
    assert card is not None
    assert card.store == "another trial"
    metadata = read_metadata(published)
    assert (metadata.bundle, metadata.seed, metadata.license) == (digest, 7, "Apache-2.0")
    assert metadata.stages == {"pretrain": 6, "finetune": 6}
    assert metadata.commands == (
        "lesioncast pretrain --config demo",
        "lesioncast finetune --config demo",
    )
    assert metadata.evaluation.command == "lesioncast evaluate --config demo --store store.zarr"
    assert metadata.evaluation.test_cases == len(TEST.case)
    assert metadata.eval_metrics["auc.sampled"] == 1
    rate = report.headline.activity["pooled"].methods["arm_rate"].auc
    assert metadata.eval_metrics["auc.arm_rate"] == round(rate.value, 4)
    assert metadata.evaluation.intervals["auc.arm_rate"] == pytest.approx(
        (rate.low, rate.high), abs=5e-5
    )
    for text in (metadata.description, metadata.intended_use):
        assert "simulated patients alone" in text
    assert "not a medical device" in metadata.intended_use


def test_the_log_keeps_the_lines_of_jobs_without_colours_and_paths_of_the_machine(
    folder: Path,
) -> None:
    assert run(folder) == 0
    lines = (folder / "published" / "training.log").read_text().splitlines()
    assert len(lines) == LOG.count("\n") - 1
    assert "(RayTrainWorker pid=8290) pretrain: step 6/6  loss 0.5" in lines
    assert lines[-1] == "12:30:00 bundle demo/bundle (0123456789ab)"
    assert "somebody" not in "\n".join(lines)


def test_the_metadata_has_the_keys_that_monai_requires(folder: Path) -> None:
    assert run(folder) == 0
    metadata = json.loads((folder / "published" / METADATA).read_text())
    assert set(metadata) >= REQUIRED
    tensors = metadata["network_data_format"]
    for tensor in (*tensors["inputs"].values(), *tensors["outputs"].values()):
        assert set(tensor) >= REQUIRED_OF_TENSORS
        assert len(tensor["channel_def"]) == tensor["num_channels"]
    config = describe_bundle(folder / "published").config
    assert tensors["inputs"]["image"]["spatial_shape"] == list(config.slab)
    assert [*tensors["inputs"]["arm"]["channel_def"].values()] == list(config.model.arms)
    for wanted in MetaProperties.values():
        section = metadata
        for key in wanted["id"].split("::")[1:]:
            section = section[key]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder, report: write_report(folder, report), "expected the evaluation of bundle"),
        (
            lambda folder, report: write_report(
                folder,
                replace(
                    report,
                    bundle=bundle_digest(folder / "bundle"),
                    provenance=replace(report.provenance, store=training_store(folder)),
                ),
            ),
            "on another trial than that of the training, got the same trial",
        ),
        (
            lambda folder, _: (folder / "bundle" / TYPICALITY_FILE).unlink(),
            "expected a bundle with a calibration and the features of typical",
        ),
    ],
    ids=["other bundle", "same trial", "no typicality"],
)
def test_a_bundle_without_its_own_evaluation_on_another_trial_is_refused(
    folder: Path,
    report: EvaluationReport,
    spoil: Callable[[Path, EvaluationReport], None],
    complaint: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil(folder, report)
    with caplog.at_level(logging.ERROR):
        assert run(folder) == 1
    assert complaint in caplog.text
    assert not (folder / "published").exists()


def training_store(folder: Path) -> str:
    calibration = describe_bundle(folder / "bundle").calibration
    assert calibration is not None
    return calibration.cohort.store


def test_a_log_without_both_stages_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "training.log").write_text(LOG.replace("lesioncast pretrain", "make pretrain"))
    assert run(folder) == 2
    assert "--log: expected the output of pretrain with its command" in capsys.readouterr().err


def test_a_bundle_that_is_too_large_is_refused_and_leaves_the_published_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(folder) == 0
    before = (folder / "published" / METADATA).read_bytes()
    monkeypatch.setattr(publish, "MAX_MB", 0.001)
    with caplog.at_level(logging.ERROR):
        assert run(folder, version="1.1.0") == 1
    assert "expected at most 0.001 MB" in caplog.text
    assert (folder / "published" / METADATA).read_bytes() == before


def test_each_version_has_one_line_of_the_changelog(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(folder) == 0
    assert run(folder, change="Again.") == 2
    assert "expected a version after 1.0.0, got 1.0.0" in capsys.readouterr().err
    assert run(folder, version="1.1.0", change="Longer training.") == 0
    assert read_metadata(folder / "published").changelog == {
        "1.1.0": "Longer training.",
        "1.0.0": "First version.",
    }


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("bundle /a/b/out/demo/bundle (0123)", "bundle demo/bundle (0123)"),
        ("cached in /dev/shm/lesioncast-0; free", "cached in lesioncast-0; free"),
        ("--store=/a/b/c/store.zarr", "--store=c/store.zarr"),
        ("from /home/somebody", "from somebody"),
        ("8/24 subjects, 0.9/s, out/demo/bundle", "8/24 subjects, 0.9/s, out/demo/bundle"),
    ],
)
def test_absolute_paths_are_shortened(text: str, short: str) -> None:
    assert shorten_paths(text) == short
