"""The name `pretrained` stands for the bundle that comes with lesioncast, wherever one is read."""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lesioncast import api
from lesioncast.bundle import pretrained
from lesioncast.bundle.description import bundle_digest
from lesioncast.cli import build_parser
from lesioncast.errors import BundleError
from serve.settings import ServiceSettings
from tests.architecture.tree import ROOT
from tests.support.forecast import write_bundle

# Loads a bundle, and fails where anything below the bundle's folder is changed.
READ_ALONE = """
import os, sys
folder = sys.argv[1]
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink"}

def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(folder):
        mode, flags = arguments[1:]
        assert not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT), (event, arguments)
    assert event not in CHANGES or not str(arguments[0]).startswith(folder), (event, arguments)

sys.addaudithook(refuse)
from lesioncast.api import load_bundle
print(load_bundle(folder).bundle.digest)
"""


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a bundle of random weights in the place of the one that is shipped."""
    folder = tmp_path / "site-packages" / "lesioncast" / "pretrained"
    write_bundle(folder)
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    return folder


def parsed(*arguments: str) -> argparse.Namespace:
    return build_parser().parse_args(arguments)


def test_it_lies_in_the_package() -> None:
    assert pretrained.FOLDER == ROOT / "platform" / "lesioncast" / "pretrained"


def test_a_copy_of_lesioncast_without_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "absent")
    advice = r"absent: expected the bundle that comes with lesioncast.* with `make demo`"
    with pytest.raises(BundleError, match=advice):
        api.load_bundle("pretrained")
    with pytest.raises(ValueError, match=rf"(?s)bundle\n.*{advice}"):
        ServiceSettings(bundle="pretrained", store="s", demo=True)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        parsed("forecast", "--config", "demo", "--bundle", "pretrained")
    assert "--bundle: " in (error := " ".join(capsys.readouterr().err.split()))
    assert "expected the bundle that comes with lesioncast, got no folder" in error


def test_its_name_stands_for_it_wherever_a_bundle_is_read(shipped: Path) -> None:
    assert api.load_bundle("pretrained").bundle.path == shipped
    for job in ("forecast", "evaluate"):
        assert parsed(job, "--config", "demo", "--bundle", "pretrained").bundle == shipped
    assert parsed("calibrate", "pretrained", "store.zarr", "--output", "new").bundle == shipped
    assert ServiceSettings(bundle="pretrained", store="s", demo=True).bundle == shipped  # type: ignore[arg-type]


def test_a_folder_of_that_name_is_named_with_a_dot_or_as_a_path(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path("pretrained")
    write_bundle(here, num_steps=4)
    assert api.load_bundle(here).bundle.digest == bundle_digest(here) != bundle_digest(shipped)
    assert parsed("forecast", "--config", "demo", "--bundle", "./pretrained").bundle == here
    for given in (here, "./pretrained"):
        assert ServiceSettings(bundle=given, store="s", demo=True).bundle == here  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "--config", "demo", "--bundle", "pretrained"],
        ["calibrate", "pretrained", "store.zarr", "--output", "pretrained"],
    ],
)
def test_no_job_writes_to_it(
    shipped: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)
    error = " ".join(capsys.readouterr().err.split())
    assert f"{arguments[-2]}: expected a folder to write to, got pretrained" in error


def test_several_processes_load_it_without_writing_to_its_folder(shipped: Path) -> None:
    command = [sys.executable, "-c", READ_ALONE, str(shipped)]
    loading = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    digests = [process.communicate(timeout=120)[0].strip() for process in loading]
    assert digests == [bundle_digest(shipped)] * 2


def test_the_wheel_and_the_image_contain_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "platform/lesioncast" in wheel["only-include"]
    assert wheel["sources"]["platform/lesioncast"] == "lesioncast"
    assert "COPY platform platform" in (ROOT / "k8s/Dockerfile").read_text()
    # The wheel leaves out what git ignores, whatever the suffix of a bundle's files.
    names = ["unet.safetensors", "manifest.json", "README.md", "metadata.json", "training.log"]
    paths = [f"platform/lesioncast/pretrained/{name}" for name in names]
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", *paths, "out/x"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ignored.stdout.split() == ["out/x"]
