"""Image and manifests agree with the tree: versions, environments, imports and arguments."""

import importlib
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from serve.settings import ServiceSettings
from tests.support.manifests import ROOT, Manifest, cluster_of, everything, one

DOCKERFILE = ROOT / "k8s" / "Dockerfile"
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
SERVE_CONFIGS = [one(overlay, "RayService", "forecasts") for overlay in ("dev", "gpu")]


def serve_config(manifest: Manifest) -> Manifest:
    config: Manifest = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return config


def test_ray_and_torch_have_one_version_everywhere() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    pinned = (ROOT / ".ci/constraints.txt").read_text()
    (version,) = re.findall(r'"ray\[.*\]==([\d.]+)"', pyproject)
    assert re.findall(r"^ray==(.+)$", pinned, re.M) == [version] == [ray.__version__]
    clusters = [cluster_of(manifest) for _, manifest in everything()]
    assert {cluster["rayVersion"] for cluster in clusters if cluster} == {version}
    torch = re.findall(r"^ARG TORCH=(.+)$", DOCKERFILE.read_text(), re.M)
    assert torch == re.findall(r"^torch==(.+)$", pinned, re.M)


def test_image_tags_equal_the_version_of_the_project() -> None:
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    text = "".join(path.read_text() for path in (ROOT / "k8s/overlays").rglob("*.yaml"))
    tags = set(re.findall(r"newTag: ([^}\s]+)", text))
    assert tags == {version, f"{version}-cuda"}


def test_hadolint_accepts_the_dockerfile(tmp_path: Path) -> None:
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    loose = tmp_path / "Dockerfile"
    loose.write_text(DOCKERFILE.read_text().replace("${PYTHON}", "latest"))
    assert subprocess.run([HADOLINT, loose], capture_output=True, check=False).returncode != 0


def test_the_image_is_built_in_stages_and_runs_as_an_unprivileged_user() -> None:
    lines = DOCKERFILE.read_text().splitlines()
    assert sum(line.startswith("FROM ") for line in lines) == 2
    (user,) = [line.split()[1] for line in lines if line.startswith("USER ")]
    pod = SERVE_CONFIGS[0]["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    context = pod["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"


def test_the_build_context_holds_only_what_is_copied() -> None:
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


def test_jobs_and_service_have_the_environment_of_a_submitted_job() -> None:
    submitted = yaml.safe_load((ROOT / "jobs/runtime_env.yaml").read_text())["env_vars"]
    environments = [
        serve_config(service)["applications"][0]["runtime_env"] for service in SERVE_CONFIGS
    ]
    environments += [
        yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])
        for _, manifest in everything()
        if manifest["kind"] == "RayJob"
    ]
    (folder,) = re.findall(r"^WORKDIR (/app)$", DOCKERFILE.read_text(), re.M)
    for environment in environments:
        assert environment == {"working_dir": f"local://{folder}", "env_vars": submitted}


@pytest.mark.parametrize("manifest", SERVE_CONFIGS, ids=["dev", "gpu"])
def test_ray_serve_knows_every_key_of_the_serve_config(manifest: Manifest) -> None:
    config = serve_config(manifest)
    assert unknown_keys(config) == set()
    ServeDeploySchema.model_validate(config)
    config["applications"][0]["import_pth"] = "serve.app:build"
    assert unknown_keys(config) == {"applications.import_pth"}


def unknown_keys(config: Manifest) -> set[str]:
    """Return the keys that `ServeDeploySchema` has no field for; it drops them silently."""
    schema = ServeDeploySchema.model_json_schema()
    application = schema["$defs"]["ServeApplicationSchema"]["properties"]
    deployment = schema["$defs"]["DeploymentSchema"]["properties"]
    unknown = set(config) - set(schema["properties"])
    for app in config["applications"]:
        unknown |= {f"applications.{key}" for key in set(app) - set(application)}
        for settings in app.get("deployments", ()):
            unknown |= {f"deployments.{key}" for key in set(settings) - set(deployment)}
    return unknown


@pytest.mark.parametrize("manifest", SERVE_CONFIGS, ids=["dev", "gpu"])
def test_the_import_path_resolves(manifest: Manifest) -> None:
    (application,) = serve_config(manifest)["applications"]
    module, attribute = application["import_path"].split(":")
    assert (module, attribute) == ("serve.app", "build")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("manifest", SERVE_CONFIGS, ids=["dev", "gpu"])
def test_the_service_accepts_its_arguments(manifest: Manifest) -> None:
    (application,) = serve_config(manifest)["applications"]
    settings = ServiceSettings(**application["args"])
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings.gpus_per_sampler == int(limits.get("nvidia.com/gpu", 0))
