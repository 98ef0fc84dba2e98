"""The manifests render and are valid for Kubernetes and KubeRay; every check can fail."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.kuberay_rules import confinement, faults, pod_faults
from tests.support.manifests import (
    CRDS,
    OVERLAYS,
    ROOT,
    Manifest,
    changed,
    cluster_of,
    everything,
    kuberay_faults,
    kubernetes_faults,
    one,
    pods,
    rendered,
    text,
)

OURS = ("ray.io/v1", "monitoring.coreos.com/v1")  # resources that Kubernetes itself does not know
WORKERS = "spec/rayClusterSpec/workerGroupSpecs/0"
SAMPLERS = "spec/rayClusterConfig/workerGroupSpecs/0"
needs_crds = pytest.mark.skipif(
    not CRDS.is_dir(), reason=f"KubeRay's resource definitions are not at {CRDS}"
)


def job() -> Manifest:
    return one("gpu/jobs", "RayJob", "lesioncast-pretrain")


def service() -> Manifest:
    return one("gpu", "RayService", "forecasts")


def ray_resources() -> list[tuple[str, Manifest]]:
    return [
        (name, manifest) for name, manifest in everything() if manifest["apiVersion"] == "ray.io/v1"
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_into_one_namespace_with_unique_names(overlay: str) -> None:
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered(overlay)]
    assert len(names) == len(set(names))
    for manifest in rendered(overlay):
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "lesioncast"


def test_another_kubectl_renders_the_same() -> None:
    other = shutil.which("kubectl", path="/usr/local/bin:/usr/bin")
    if other is None:
        pytest.skip("no second kubectl in /usr/bin: only the pinned one has rendered the manifests")
    folder = ROOT / "k8s" / "overlays" / "gpu" / "jobs"
    done = subprocess.run([other, "kustomize", folder], capture_output=True, text=True, check=True)
    assert done.stdout == text("gpu/jobs")


def test_kubernetes_resources_meet_their_schema() -> None:
    kinds: dict[str, list[Manifest]] = {}
    for _, manifest in everything():
        if manifest["apiVersion"] not in OURS:
            kinds.setdefault(manifest["kind"], []).append(manifest)
    assert set(kinds) >= {"Namespace", "PersistentVolumeClaim", "NetworkPolicy"}
    for manifests in kinds.values():
        assert kubernetes_faults(manifests) is None


def test_ray_pods_meet_the_pod_schema() -> None:
    templates = [pod for _, manifest in ray_resources() for _, pod in pods(manifest)]
    assert kubernetes_faults([as_pod(template) for template in templates]) is None
    misspelt = changed(as_pod(templates[0]), "spec/containers/0/volumeMount", [])
    assert kubernetes_faults([misspelt])


def test_the_data_loader_is_a_confined_pod() -> None:
    loader = yaml.safe_load((ROOT / "k8s/loader.yaml").read_text())
    assert kubernetes_faults([loader]) is None
    assert list(confinement(loader["spec"])) == []
    claim = one("gpu", "PersistentVolumeClaim", "lesioncast-data")["metadata"]
    assert loader["spec"]["volumes"][1]["persistentVolumeClaim"]["claimName"] == claim["name"]
    assert loader["metadata"]["namespace"] == claim["namespace"]


def test_the_guide_names_folders_and_jobs_that_exist() -> None:
    guide = (ROOT / "k8s/README.md").read_text()
    for path in re.findall(r"(?:-[kf]|apply -f) (k8s/[^\s]+)", guide):
        for overlay in ("dev", "gpu"):
            assert (ROOT / path.replace("$O", overlay)).exists(), path
    jobs = {manifest["metadata"]["labels"]["job"] for manifest in rendered("dev/jobs")}
    named = set(re.findall(r"job=(\w+)", guide))
    assert named
    assert named <= jobs


def as_pod(template: Manifest) -> Manifest:
    return {"apiVersion": "v1", "kind": "Pod", **template}


@pytest.mark.parametrize(
    ("path", "value"),
    [("spec/podSelectr", {}), ("spec/ingress", [{"form": []}])],
)
def test_kubernetes_schema_refuses(path: str, value: Any) -> None:
    policy = one("gpu", "NetworkPolicy", "ray-pods")
    assert kubernetes_faults([changed(policy, path, value)])


@needs_crds
def test_ray_resources_meet_kuberays_definitions() -> None:
    assert len(ray_resources()) == 13
    for name, manifest in ray_resources():
        assert kuberay_faults(manifest) == [], name


@needs_crds
@pytest.mark.parametrize(
    ("manifest", "path", "value"),
    [
        (job, f"{WORKERS}/minReplica", 1),
        (job, "spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0),
        (job, f"{WORKERS}/template/spec/containers/0/resources/limit", {}),
        (job, "spec/submissionModes", "HTTPMode"),
        (job, "spec/rayClusterSpec/authOptions/mode", "basic"),
        (service, "spec/upgradeStrategy/typ", "NewCluster"),
        (service, f"{SAMPLERS}/maxReplicas", None),
        (service, "spec/rayClusterConfig/gcsFaultToleranceOptions/backend", "etcd"),
    ],
)
def test_kuberays_definitions_refuse(manifest: Any, path: str, value: Any) -> None:
    assert kuberay_faults(changed(manifest(), path, value))


def test_ray_resources_follow_the_operators_rules() -> None:
    for name, manifest in ray_resources():
        assert faults(manifest) == [], name


@pytest.mark.parametrize(
    ("manifest", "path", "value", "message"),
    [
        (job, "metadata/name", "Pretrain", "DNS-1035"),
        (job, "metadata/name", "a" * 48, "DNS-1035"),
        (job, "spec/rayClusterSpec/authOptions", None, "mode token"),
        (job, "spec/rayClusterSpec/rayVersion", "2.51.0", "2.52"),
        (job, "spec/rayClusterSpec/headGroupSpec/rayStartParams", {"num-cpus": 0}, "strings"),
        (job, "spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", "2", "no work"),
        (job, f"{WORKERS}/minReplicas", None, "minReplicas"),
        (job, f"{WORKERS}/minReplicas", 9, "minReplicas"),
        (job, f"{WORKERS}/rayStartParams", {"resources": "{}"}, None),
        (job, "spec/shutdownAfterJobFinishes", False, "shutdownAfterJobFinishes"),
        (job, "spec/clusterSelector", {"a": "b"}, "of the job's own"),
        (service, "spec/rayClusterConfig/autoscalerOptions/version", "v1", "v2"),
        (service, "spec/rayClusterConfig/enableInTreeAutoscaling", False, "without"),
        (service, f"{SAMPLERS}/template/spec/restartPolicy", "Always", "restartPolicy"),
        (
            service, f"{SAMPLERS}/template/spec/containers/0/env",
            [{"name": "RAY_enable_autoscaler_v2", "value": "1"}], "either",
        ),
        (
            service, "spec/rayClusterConfig/headGroupSpec/template/spec/containers/0/env",
            [{"name": "REDIS_PASSWORD", "value": "x"}], "variables",
        ),
        (
            service, "spec/rayClusterConfig/gcsFaultToleranceOptions/externalStorageNamespace",
            "forecasts", "share",
        ),
        (
            service, "spec/rayClusterConfig/gcsFaultToleranceOptions/redisPassword",
            {"value": "x"}, "by reference",
        ),
        (
            service, "spec/rayClusterConfig/headGroupSpec/template/spec/"
            "automountServiceAccountToken", False, "autoscaler",
        ),
    ],
)  # fmt: skip
def test_a_broken_operator_rule_is_reported(
    manifest: Any, path: str, value: Any, message: str | None
) -> None:
    reported = faults(changed(manifest(), path, value))
    assert any(message in fault for fault in reported) if message else reported == []


def test_every_pod_is_confined_and_states_its_resources() -> None:
    for name, manifest in ray_resources():
        assert pod_faults(manifest) == [], name


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("securityContext/runAsNonRoot", False, "runAsNonRoot"),
        ("securityContext/seccompProfile", None, "seccomp"),
        ("volumes", [{"name": "tmp", "hostPath": {"path": "/"}}], "hostPath"),
        ("containers/0/securityContext/readOnlyRootFilesystem", False, "readOnly"),
        ("containers/0/securityContext/capabilities", {"add": ["SYS_ADMIN"]}, "capabilities"),
        ("containers/0/volumeMounts", [], "/tmp"),
        ("containers/0/resources/limits/memory", None, "limits"),
        ("containers/0/resources/requests/memory", "1Gi", "object store"),
        ("containers/0/image", "lesioncast", "version"),
        ("containers/0/image", "lesioncast:latest", "version"),
    ],
)
def test_an_unconfined_pod_is_reported(path: str, value: Any, message: str) -> None:
    reported = pod_faults(changed(job(), f"{WORKERS}/template/spec/{path}", value))
    assert any(message in fault for fault in reported)


def test_the_autoscaler_is_confined_like_the_pods() -> None:
    options = service()["spec"]["rayClusterConfig"]["autoscalerOptions"]
    (worker,) = service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    container = worker["template"]["spec"]["containers"][0]
    assert options["securityContext"] == container["securityContext"]
    assert [mount["mountPath"] for mount in options["volumeMounts"]] == ["/tmp"]


def test_the_manifests_hold_no_secret() -> None:
    for name, manifest in everything():
        assert manifest["kind"] != "Secret", name
    text = "".join(path.read_text() for path in (ROOT / "k8s").rglob("*.yaml"))
    assert not re.search(r"(?i)(auth_token|password): *[\"']?\w", text)


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate", "forecast"])
def test_a_gpu_job_has_the_gpus_of_its_configuration(name: str) -> None:
    manifest = one("gpu/jobs", "RayJob", f"lesioncast-{name}")
    (group,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    config = yaml.safe_load((ROOT / entrypoint(manifest)[3]).read_text())
    section = config[{"evaluate": "evaluation"}.get(name, name)]
    gpus = section.get("gpus_per_worker", 1)
    assert int(limits["nvidia.com/gpu"]) * group["replicas"] == section["workers"] * gpus
    # Training asks Ray for A100, which Ray reads off the GPU's name.
    assert group["labels"] == {"ray.io/accelerator-type": "A100"}
    assert "A100" in group["template"]["spec"]["nodeSelector"]["nvidia.com/gpu.product"]


def test_workers_leave_a_cpu_for_ray_data() -> None:
    for name, manifest in ray_resources():
        if manifest["kind"] == "RayJob":
            config = yaml.safe_load((ROOT / entrypoint(manifest)[3]).read_text())
            (group,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert int(limits["cpu"]) * group["replicas"] > config["pretrain"]["workers"], name


def entrypoint(manifest: Manifest) -> list[str]:
    return str(manifest["spec"]["entrypoint"]).split()


def test_every_job_names_an_existing_script_and_configuration() -> None:
    for name, manifest in ray_resources():
        if manifest["kind"] == "RayJob":
            python, script, flag, config = entrypoint(manifest)
            assert (python, flag) == ("python", "--config"), name
            assert (ROOT / script).is_file(), name
            assert (ROOT / config).is_file(), name
            assert script == f"jobs/{manifest['metadata']['labels']['job']}.py"


def test_policies_and_budgets_select_pods_that_exist() -> None:
    labels = [
        pod["metadata"]["labels"] | {"ray.io/node-type": "head" if role == "head" else "worker"}
        for _, manifest in ray_resources()
        for role, pod in pods(manifest)
    ]
    for name, manifest in everything():
        spec = manifest.get("spec", {})
        selector = spec.get("podSelector") or (
            spec["selector"] if manifest["kind"] in ("PodDisruptionBudget", "PodMonitor") else {}
        )
        selected = selector.get("matchLabels", {}).items()
        assert any(selected <= pod_labels.items() for pod_labels in labels), name


def test_every_mounted_claim_exists() -> None:
    for name, manifest in ray_resources():
        standing = rendered(name.split("/")[0])
        claims = {e["metadata"]["name"] for e in standing if e["kind"] == "PersistentVolumeClaim"}
        for _, pod in pods(manifest):
            for volume in pod["spec"]["volumes"]:
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                assert claim is None or claim in claims, name


def test_every_overlay_is_tested() -> None:
    folders = (ROOT / "k8s" / "overlays").rglob("kustomization.yaml")
    overlays = {str(path.parent.relative_to(ROOT / "k8s" / "overlays")) for path in folders}
    assert overlays == set(OVERLAYS)
    assert all(cluster_of(manifest) is not None for _, manifest in ray_resources())
