"""Rules of KubeRay 1.7 beyond its schema, and the project's own rules for pods."""

import re
from collections.abc import Iterator

from tests.support.manifests import Manifest, cluster_of, pods

# Each rule was read in the validation of the operator: it refuses these resources, or they hang.
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = 47  # of a RayJob or RayService; the operator appends to it
LONGEST_GROUP = 63


def faults(manifest: Manifest) -> list[str]:
    """Return a sentence for each broken rule of a RayJob or a RayService."""
    cluster = cluster_of(manifest)
    if cluster is None:
        return []
    broken = [*_name(manifest), *_cluster(cluster), *_autoscaling(cluster), *_redis(cluster)]
    if manifest["kind"] == "RayJob":
        broken += _job(manifest["spec"])
    return broken


def _name(manifest: Manifest) -> Iterator[str]:
    name = manifest["metadata"]["name"]
    if not DNS_1035.fullmatch(name) or len(name) > LONGEST_NAME:
        yield f"{name}: expected a DNS-1035 label of at most {LONGEST_NAME} characters"


def _cluster(cluster: Manifest) -> Iterator[str]:
    version = tuple(map(int, cluster["rayVersion"].split(".")))
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions: expected mode token"
    elif version < (2, 52, 0):
        yield f"authOptions: token needs Ray 2.52 or later, got {cluster['rayVersion']}"
    groups = [("head", cluster["headGroupSpec"])]
    groups += [(group["groupName"], group) for group in cluster["workerGroupSpecs"]]
    for name, group in groups:
        starts = group["rayStartParams"]
        if not all(isinstance(value, str) for value in starts.values()):
            yield f"{name}: rayStartParams are strings"
        if "resources" in starts and "resources" in group:
            yield f"{name}: resources either in rayStartParams or beside them"
        if not DNS_1035.fullmatch(name) or len(name) > LONGEST_GROUP:
            yield f"{name}: expected a DNS-1035 label"
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "head: expected num-cpus 0, so that it does no work"
    for group in cluster["workerGroupSpecs"]:
        low, high = group.get("minReplicas"), group.get("maxReplicas")
        if low is None or high is None or not low <= group.get("replicas", low) <= high:
            yield f"{group['groupName']}: expected minReplicas <= replicas <= maxReplicas"


def _autoscaling(cluster: Manifest) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        if "autoscalerOptions" in cluster:
            yield "autoscalerOptions without enableInTreeAutoscaling"
        return
    if cluster.get("autoscalerOptions", {}).get("version") != "v2":
        yield "autoscalerOptions: state version v2"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        if pod.get("restartPolicy", "Never") != "Never":
            yield "autoscaler v2: restartPolicy is Never or not given"
        if "RAY_enable_autoscaler_v2" in _variables(pod):
            yield "autoscaler v2: either the field or the variable"
    if cluster["headGroupSpec"]["template"]["spec"].get("automountServiceAccountToken") is False:
        yield "head: the autoscaler beside it needs its service account's token"


def _redis(cluster: Manifest) -> Iterator[str]:
    options = cluster.get("gcsFaultToleranceOptions")
    if options is None:
        return
    if options.get("backend") == "rocksdb":
        yield "gcsFaultToleranceOptions: rocksdb needs a feature gate that is off"
    if "externalStorageNamespace" in options:
        yield "gcsFaultToleranceOptions: the clusters of an upgrade would share one namespace"
    if "value" in options.get("redisPassword", {}):
        yield "gcsFaultToleranceOptions: the password by reference"
    head = cluster["headGroupSpec"]
    named = _variables(head["template"]["spec"]) | set(head["rayStartParams"])
    if named & {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "redis-password"}:
        yield "gcsFaultToleranceOptions: no variables or parameters of Redis beside it"


def _job(spec: Manifest) -> Iterator[str]:
    if not spec.get("shutdownAfterJobFinishes"):
        if spec.get("suspend"):
            yield "suspend needs shutdownAfterJobFinishes"
        if spec.get("ttlSecondsAfterFinished"):
            yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if spec.get("backoffLimit", 0) and "clusterSelector" in spec:
        yield "backoffLimit needs a cluster of the job's own"
    if spec.get("submitterPodTemplate", {}).get("spec", {}).get("restartPolicy") == "Always":
        yield "submitter: restartPolicy is Never or OnFailure"


def _variables(pod: Manifest) -> set[str]:
    return {
        variable["name"] for container in pod["containers"] for variable in container.get("env", ())
    }


def pod_faults(manifest: Manifest) -> list[str]:
    """Return a sentence for each pod that is not confined or does not state its resources."""
    return [
        f"{name}: {fault}" for name, pod in pods(manifest) for fault in confinement(pod["spec"])
    ]


def confinement(spec: Manifest) -> Iterator[str]:
    """Yield a sentence for each rule that one pod's spec breaks."""
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "expected runAsNonRoot and a user"
    if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "expected the runtime's seccomp profile"
    writable = {volume["name"] for volume in spec.get("volumes", ()) if "hostPath" not in volume}
    if len(writable) != len(spec.get("volumes", ())):
        yield "hostPath: expected no files of the node"
    for container in spec["containers"]:
        yield from _container(container, writable)


def _container(container: Manifest, volumes: set[str]) -> Iterator[str]:
    context = container.get("securityContext", {})
    required = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    for key, value in required.items():
        if context.get(key) != value:
            yield f"expected {key} {value}, got {context.get(key)}"
    mounts = {mount["mountPath"]: mount["name"] for mount in container.get("volumeMounts", ())}
    if "/tmp" not in mounts:
        yield "a read-only root needs /tmp, where Ray keeps its session"
    if not set(mounts.values()) <= volumes:
        yield "a mount without its volume"
    resources = container.get("resources", {})
    for kind in ("requests", "limits"):
        if not {"cpu", "memory"} <= set(resources.get(kind, ())):
            yield f"expected {kind} of cpu and memory"
    if resources.get("requests", {}).get("memory") != resources.get("limits", {}).get("memory"):
        yield "memory: a request below the limit lets the node kill a full object store"
    name, _, tag = container["image"].partition(":")
    if tag in ("", "latest"):
        yield f"{name}: expected an image with a version"
