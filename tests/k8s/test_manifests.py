"""The manifests render and are what Kubernetes and KubeRay accept; each check is seen to refuse."""

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
    return [(name, each) for name, each in everything() if each["apiVersion"] == "ray.io/v1"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_into_one_namespace_with_no_name_twice(overlay: str) -> None:
    found = [(each["kind"], each["metadata"]["name"]) for each in rendered(overlay)]
    assert len(found) == len(set(found))
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


def test_kubernetes_own_resources_meet_its_schema() -> None:
    kinds: dict[str, list[Manifest]] = {}
    for _, manifest in everything():
        if manifest["apiVersion"] not in OURS:
            kinds.setdefault(manifest["kind"], []).append(manifest)
    assert set(kinds) >= {"Namespace", "PersistentVolumeClaim", "NetworkPolicy"}
    for manifests in kinds.values():
        assert kubernetes_faults(manifests) is None


def test_the_pods_of_ray_meet_kubernetes_schema_of_a_pod() -> None:
    templates = [pod for _, manifest in ray_resources() for _, pod in pods(manifest)]
    assert kubernetes_faults([as_pod(template) for template in templates]) is None
    misspelt = changed(as_pod(templates[0]), "spec/containers/0/volumeMount", [])
    assert kubernetes_faults([misspelt])


def test_the_loader_of_data_is_a_confined_pod() -> None:
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
    jobs = {each["metadata"]["labels"]["job"] for each in rendered("dev/jobs")}
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


def test_ray_resources_keep_the_operators_rules() -> None:
    for name, manifest in ray_resources():
        assert faults(manifest) == [], name


@pytest.mark.parametrize(
    ("manifest", "path", "value", "said"),
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
def test_the_operators_rules_refuse(manifest: Any, path: str, value: Any, said: str | None) -> None:
    found = faults(changed(manifest(), path, value))
    assert any(said in fault for fault in found) if said else found == []


def test_every_pod_is_confined_and_says_what_it_needs() -> None:
    for name, manifest in ray_resources():
        assert pod_faults(manifest) == [], name


@pytest.mark.parametrize(
    ("path", "value", "said"),
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
def test_a_loose_pod_is_refused(path: str, value: Any, said: str) -> None:
    found = pod_faults(changed(job(), f"{WORKERS}/template/spec/{path}", value))
    assert any(said in fault for fault in found)


def test_the_autoscaler_is_confined_like_the_pods_beside_it() -> None:
    options = service()["spec"]["rayClusterConfig"]["autoscalerOptions"]
    (worker,) = service()["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    container = worker["template"]["spec"]["containers"][0]
    assert options["securityContext"] == container["securityContext"]
    assert [each["mountPath"] for each in options["volumeMounts"]] == ["/tmp"]


def test_no_secret_is_written_down() -> None:
    for name, manifest in everything():
        assert manifest["kind"] != "Secret", name
    text = "".join(path.read_text() for path in (ROOT / "k8s").rglob("*.yaml"))
    assert not re.search(r"(?i)(auth_token|password): *[\"']?\w", text)


@pytest.mark.parametrize("name", ["pretrain", "finetune", "evaluate", "forecast"])
def test_a_gpu_job_has_the_gpus_its_configuration_asks_for(name: str) -> None:
    manifest = one("gpu/jobs", "RayJob", f"lesioncast-{name}")
    (group,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    config = yaml.safe_load((ROOT / entrypoint(manifest)[3]).read_text())
    section = config[{"evaluate": "evaluation"}.get(name, name)]
    each = section.get("gpus_per_worker", 1)
    assert int(limits["nvidia.com/gpu"]) * group["replicas"] == section["workers"] * each
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


def test_every_job_runs_a_script_and_a_configuration_that_exist() -> None:
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
        wanted = selector.get("matchLabels", {}).items()
        assert any(wanted <= each.items() for each in labels), name


def test_every_mounted_claim_is_made() -> None:
    for name, manifest in ray_resources():
        standing = rendered(name.split("/")[0])
        claims = {e["metadata"]["name"] for e in standing if e["kind"] == "PersistentVolumeClaim"}
        for _, pod in pods(manifest):
            for volume in pod["spec"]["volumes"]:
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                assert claim is None or claim in claims, name


def test_the_overlays_are_all_that_lie_there() -> None:
    folders = (ROOT / "k8s" / "overlays").rglob("kustomization.yaml")
    found = {str(path.parent.relative_to(ROOT / "k8s" / "overlays")) for path in folders}
    assert found == set(OVERLAYS)
    assert all(cluster_of(each) is not None for _, each in ray_resources())
