"""Reduced runs of the benchmarks: what those for a GPU count and need, and that the others run."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from lesioncast.config import load_config
from lesioncast.diffusion.unet import UNet, UNetConfig
from storage.store.shard_file import ShardFile
from storage.store.zarr_shard import ZarrShard
from tests.benchmarks.data import store_reads
from tests.benchmarks.training import training_step
from tests.support.store import SHARD, write_small_store

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "tests" / "benchmarks"
# What the GPU's machine lacks, and what it has but the paper's benchmark does not need.
ABSENT = ("ray", "pydantic")
NEEDLESS = ("zarr", "nibabel", "nilearn", "yaml", "scipy", "sklearn", "matplotlib", "safetensors")

# A name that stands for None there cannot be imported.
RUN_WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys({absent!r}))
sys.path[:0] = {path!r}
sys.argv = {argv!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_without(absent: tuple[str, ...], script: str, *arguments: str) -> str:
    """Run a benchmark in a Python without the `absent` modules; return its standard output."""
    path = [str(ROOT), str(ROOT / "platform")]
    code = RUN_WITHOUT.format(absent=absent, path=path, argv=[str(BENCHMARKS / script), *arguments])
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("script", sorted(BENCHMARKS.glob("*/*.py")), ids=lambda path: path.stem)
def test_every_script_imports_names_that_exist(script: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own
        importlib.import_module(f"tests.benchmarks.{script.parent.name}.{script.stem}")


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the record of the reduced check, run with torch and numpy alone."""
    out = tmp_path_factory.mktemp("paper")
    output = run_without((*ABSENT, *NEEDLESS), "gpu/paper_on_gpu.py", "--out", str(out))
    assert "reduced check" in output
    record: dict[str, Any] = json.loads((out / "paper.json").read_text())
    return record


@pytest.mark.slow
def test_the_paper_preset_costs_what_was_counted_by_hand(reduced: dict[str, Any]) -> None:
    gmac = reduced["gmac_per_case"]["paper"]
    assert round(gmac["unet"], 1) == 593.6
    assert (round(gmac["hint"], 1), round(gmac["control"], 1)) == (43.1, 152.7)
    # Backward is twice forward, but for the gradient of z that nobody asks for.
    assert 2.99 < gmac["stage1"] / gmac["unet"] < 3


@pytest.mark.slow
def test_the_benchmark_measures_the_networks_of_the_paper_preset(reduced: dict[str, Any]) -> None:
    preset = load_config(ROOT / "jobs" / "configs" / "paper.yaml").model
    assert reduced["paper"] == json.loads(json.dumps(asdict(preset)))


@pytest.mark.slow
def test_every_row_of_the_reduced_check_is_measured(reduced: dict[str, Any]) -> None:
    assert reduced["reduced"]
    assert not [row for row in reduced["rows"] if "failed" in row]
    timed = [row for row in reduced["rows"] if row["section"] != "parts"]
    assert {row["section"] for row in timed} == {
        "stage1", "forward", "stage2", "evaluation", "sampling",
    }  # fmt: skip
    for row in timed:
        assert row["tflops"] > 0
        assert row["share"] == pytest.approx(row["tflops"] / row["ceiling_tflops"])
    gmac = reduced["gmac_per_case"]["measured"]
    for row in timed:
        if row["section"] in ("stage1", "stage2", "evaluation"):
            flops = 2e9 * gmac[row["section"]] * row["batch"]
            assert row["tflops"] == pytest.approx(flops / (row["median"] / 1e3) / 1e12)
    assert [row["graph_breaks"] for row in timed if row["variant"]["compiled"]] == [0, 0]
    assert reduced["convolutions"]
    assert {"clip", "Adam", "average", "last layer in float32"} <= {
        part["part"] for part in reduced["parts"]
    }
    assert reduced["ceiling"]["tflops_median"] > 0


def test_a_run_out_of_time_says_so_in_every_row(tmp_path: Path) -> None:
    output = run_without(ABSENT, "gpu/paper_on_gpu.py", "--minutes", "0", "--only", "stage1,parts")
    assert output.count("not begun: out of time") > 2


@pytest.mark.slow
def test_the_middle_sized_run_ends_in_table_3_without_ray(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "jobs" / "configs" / "demo.yaml").read_text())
    config["unet"] |= {"widths": [8, 8, 16]}
    for stage in ("pretrain", "finetune"):
        config[stage]["batch_size"] = 2
        config[stage]["workers"] = 1
    config["sampler"]["num_steps"] = 2
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--cases", str(tmp_path / "cases"), "--out", str(tmp_path / "out")]
    arguments += ["--config", str(tmp_path / "tiny.yaml"), "--subjects", "60"]
    output = run_without(
        ABSENT, "gpu/small_on_gpu.py", *arguments, "--minutes", "0.02", "--samples", "2"
    )
    assert "### AUC by arm" in output
    record = json.loads((tmp_path / "out" / "small.json").read_text())
    assert record["cases"]["train"] + record["cases"]["test"] == 60
    activity = record["variants"]["plain"]["activity"]["pooled"]["methods"]
    assert {"sampled", "arm_rate", "monte_carlo"} <= activity.keys()


def test_reads_are_measured_directly_and_through_zarr_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [case.row for case in write_small_store(tmp_path).cases]
    assert store_reads.main(["--store", str(tmp_path), "--rounds", "2"]) == 0
    *_, directly, through_zarr = capsys.readouterr().out.splitlines()
    assert "| directly |" in directly
    assert "| through zarr-python |" in through_zarr
    for way, reader in zip(
        store_reads.compare(tmp_path, rows, rounds=1), (ShardFile, ZarrShard), strict=True
    ):
        assert len(way.processor) == len(way.elapsed) == 1
        assert {type(array.of_shard(SHARD)) for array in way.arrays} == {reader}


@pytest.mark.slow
def test_loading_is_measured_in_every_way_and_conversion_on_one_and_two_workers(
    tmp_path: Path,
) -> None:
    config = str(ROOT / "jobs" / "configs" / "demo.yaml")
    arguments = ["--config", config, "--out", str(tmp_path), "--subjects", "6", "--rounds", "1"]
    output = run_without((), "data/data_loading.py", *arguments)
    record = json.loads((tmp_path / "loading.json").read_text())
    assert [conversion["workers"] for conversion in record["conversions"]] == [1, 2]
    assert all(conversion["worker_mib"] > 10 for conversion in record["conversions"])
    assert record["ray_data_worker_mib"] > 10
    names = [reading["name"] for reading in record["readings"]]
    assert len(names) == 6
    assert all(name in output for name in names)
    assert all(min(reading["rounds"]) > 0 for reading in record["readings"])


@pytest.mark.slow
def test_reduced_networks_train_are_killed_resume_and_sample(tmp_path: Path) -> None:
    keys = [
        "simulation.shape=[21,64,64]", "simulation.spacing=[3.0,4.0,4.0]",
        "store.slab=[15,64,64]", "store.spacing=[3.0,4.0,4.0]",
        "unet.widths=[16,16,16,16,32,32]", "unet.head_dim=16", "unet.groups=8",
        "control.hint_widths=[8]",
    ]  # fmt: skip
    path = os.pathsep.join((str(ROOT), str(ROOT / "platform")))
    process = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "system" / "full_width.py"),
            *("--out", str(tmp_path), "--subjects", "16"),
            *(f"--set={key}" for key in keys),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.returncode == 0, process.stderr
    rows = [line for line in process.stdout.splitlines() if line.startswith("|")][2:]
    ends = [row.split("|")[-2].strip() for row in rows]
    assert ends == ["ended", "killed", "ended", "killed", "ended", "ended"]
    assert "placebo: [" in process.stderr
    runs = tmp_path / "paper" / "runs"
    assert all((runs / stage / "step_000002").is_dir() for stage in ("pretrain", "finetune"))


def test_training_steps_are_compared_at_equal_layers() -> None:
    config = UNetConfig(
        slices=3, arms=2, widths=(8, 16), attention_stages=(1,), head_dim=8, groups=4
    )
    own, other = (
        sorted(weight.numel() for weight in network.parameters())
        for network in (UNet(config), training_step.of_diffusers(config))
    )
    # Query, key and value are one layer of ours and three of diffusers.
    assert sum(own) == sum(other)
    compared = training_step.compare(config, (2, 2, 3, 8, 8), rounds=2)
    assert [len(network.milliseconds) for network in compared] == [2, 2]
