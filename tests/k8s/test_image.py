"""The image and the manifests agree with the tree.

Versions of Ray, the environment of a job, what may be imported.
"""

import importlib
import importlib.util
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from tests.support.manifests import ROOT, Manifest, cluster_of, everything, one

DOCKERFILE = ROOT / "k8s" / "Dockerfile"
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
SERVE_CONFIGS = [one(overlay, "RayService", "forecasts") for overlay in ("dev", "gpu")]


def serve_config(manifest: Manifest) -> Manifest:
    found: Manifest = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return found


def test_one_version_of_ray_and_one_of_torch_everywhere() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    pinned = (ROOT / ".ci/constraints.txt").read_text()
    (wanted,) = re.findall(r'"ray\[.*\]==([\d.]+)"', pyproject)
    assert re.findall(r"^ray==(.+)$", pinned, re.M) == [wanted] == [ray.__version__]
    clusters = [cluster_of(manifest) for _, manifest in everything()]
    assert {each["rayVersion"] for each in clusters if each} == {wanted}
    torch = re.findall(r"^ARG TORCH=(.+)$", DOCKERFILE.read_text(), re.M)
    assert torch == re.findall(r"^torch==(.+)$", pinned, re.M)


def test_image_tags_carry_the_projects_version() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    text = "".join(path.read_text() for path in (ROOT / "k8s/overlays").rglob("*.yaml"))
    tags = set(re.findall(r"newTag: ([^}\s]+)", text))
    assert tags == {version, f"{version}-cuda"}


def test_hadolint_has_nothing_to_say(tmp_path: Path) -> None:
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    loose = tmp_path / "Dockerfile"
    loose.write_text(DOCKERFILE.read_text().replace("${PYTHON}", "latest"))
    assert subprocess.run([HADOLINT, loose], capture_output=True, check=False).returncode != 0


def test_the_image_runs_as_nobody_in_particular_and_in_stages() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    context = SERVE_CONFIGS[0]["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    found = context["securityContext"]
    assert user == f"{found['runAsUser']}:{found['runAsGroup']}"


def test_the_build_sends_what_it_copies_and_nothing_else() -> None:
    sources = re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE.read_text(), re.M)
    copied = {source for line in sources for source in line.split()}
    ignored = (ROOT / "k8s/Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored
    assert all((ROOT / source).exists() for source in copied)


def test_the_image_installs_the_projects_dependencies_and_not_the_project() -> None:
    script = [sys.executable, "k8s/requirements.py"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert "ray[data,serve,train]==2.60.0" in lines
    assert any(line.startswith("psycopg") for line in lines)
    assert not any(line.startswith("lesioncast") for line in lines)


def test_jobs_and_service_run_with_the_environment_of_a_submitted_job() -> None:
    submitted = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())["env_vars"]
    environments = [serve_config(each)["applications"][0]["runtime_env"] for each in SERVE_CONFIGS]
    environments += [
        yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])
        for _, manifest in everything()
        if manifest["kind"] == "RayJob"
    ]
    (folder,) = re.findall(r"^WORKDIR (/app)$", DOCKERFILE.read_text(), re.M)
    for environment in environments:
        assert environment == {"working_dir": f"local://{folder}", "env_vars": submitted}


@pytest.mark.parametrize("manifest", SERVE_CONFIGS, ids=["dev", "gpu"])
def test_the_serve_config_has_no_key_that_serve_does_not_know(manifest: Manifest) -> None:
    config = serve_config(manifest)
    assert unknown_keys(config) == set()
    ServeDeploySchema.model_validate(config)
    config["applications"][0]["import_pth"] = "serve.app:build"
    assert unknown_keys(config) == {"applications.import_pth"}


def unknown_keys(config: Manifest) -> set[str]:
    """Keys that `ServeDeploySchema`, which drops them in silence, has no field for."""
    known = ServeDeploySchema.model_json_schema()
    application = known["$defs"]["ServeApplicationSchema"]["properties"]
    deployment = known["$defs"]["DeploymentSchema"]["properties"]
    found = set(config) - set(known["properties"])
    for each in config["applications"]:
        found |= {f"applications.{key}" for key in set(each) - set(application)}
        for one_of in each.get("deployments", ()):
            found |= {f"deployments.{key}" for key in set(one_of) - set(deployment)}
    return found


@pytest.mark.parametrize("manifest", SERVE_CONFIGS, ids=["dev", "gpu"])
def test_the_import_path_resolves(manifest: Manifest) -> None:
    (application,) = serve_config(manifest)["applications"]
    module, attribute = application["import_path"].split(":")
    assert (module, attribute) == ("serve.app", "build")
    if importlib.util.find_spec(module) is None:
        pytest.skip("serve/app.py IS NOT THERE: the RayService of k8s/ has nothing to serve yet")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("manifest", SERVE_CONFIGS, ids=["dev", "gpu"])
def test_the_service_takes_its_arguments(manifest: Manifest) -> None:
    if importlib.util.find_spec("serve.settings") is None:
        pytest.skip("serve/settings.py IS NOT THERE: the arguments of the RayService are unchecked")
    (application,) = serve_config(manifest)["applications"]
    settings = importlib.import_module("serve.settings").ServiceSettings(**application["args"])
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings.gpus_per_sampler == int(limits.get("nvidia.com/gpu", 0))
