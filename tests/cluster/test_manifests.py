"""The files that start clusters, as far as they can be held to without one: by Ray's schema and KubeRay's own."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.testbed import ray_settings

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))
LAUNCHERS = ("aws", "onprem")


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def launcher(name: str) -> dict[str, Any]:
    return dict(documents(CLUSTER / f"{name}.yaml")[0])


def manifests(kind: str) -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in documents(path) if document["kind"] == kind]


def raycluster() -> dict[str, Any]:
    (found,) = manifests("RayCluster")
    return dict(found["spec"])


def pods() -> list[dict[str, Any]]:
    """The pod specifications of all Ray resources."""
    spec = raycluster()
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups] + [
        job["spec"]["submitterPodTemplate"]["spec"] for job in manifests("RayJob")
    ]


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    """KubeRay's schemas by kind, as JSON schemas that refuse what they do not know."""
    folder = Path(
        os.environ.get("KUBERAY_CRDS") or Path(os.environ.get("FACEREC_DATA", "/")).parent / "kuberay-crds"
    )
    if not folder.is_dir():
        pytest.skip("KUBERAY_CRDS names no folder of KubeRay's crd_rayclusters.yaml and crd_rayjobs.yaml")
    found = {}
    for name in ("rayclusters", "rayjobs"):
        text = (folder / f"crd_{name}.yaml").read_text()
        (definition,) = filter(
            None, yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        )
        (version,) = (version for version in definition["spec"]["versions"] if version["name"] == "v1")
        schema = version["schema"]["openAPIV3Schema"]
        schema["properties"]["metadata"] = {}  # Kubernetes' own, which the definition leaves out
        found[definition["spec"]["names"]["kind"]] = closed(schema)
    return found


def closed(schema: Any) -> Any:
    """The schema with unknown keys refused, and without the types that are Kubernetes' own."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items() if key != "format"}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        inner.setdefault(
            "additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields", False))
        )
    return inner


@pytest.mark.parametrize("name", LAUNCHERS)
def test_rays_launcher_takes_it(name: str) -> None:
    validate_config(prepare_config(launcher(name)))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launched_ray_requires_its_token_keeps_its_dashboard_on_loopback_and_notices_a_lost_node_soon(
    name: str,
) -> None:
    config = launcher(name)
    (head,) = (line for line in config["head_start_ray_commands"] if "--head" in line)
    (worker,) = (line for line in config["worker_start_ray_commands"] if "--address" in line)
    for line in (head, worker):
        assert "set -a" in line
        assert "ray.env" in line
        assert "RAY_AUTH_MODE=token" in line
    assert "--dashboard-host=127.0.0.1" in head
    assert any(path.endswith(".ray/auth_token") for path in config["file_mounts"])
    assert "RAY_health_check_period_ms" in ray_settings()
    assert ray_settings()["RAY_USAGE_STATS_ENABLED"] == "0"


def test_on_aws_workers_are_spot_from_none_with_stated_resources_and_a_role_that_starts_no_machines() -> None:
    config = launcher("aws")
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert types.keys() == {group["groupName"] for group in raycluster()["workerGroupSpecs"]}
    for worker in types.values():
        assert worker["min_workers"] == 0
        assert worker["resources"]["CPU"] > 0
        assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert worker["node_config"]["IamInstanceProfile"]["Arn"].endswith("/facerec-worker")
        assert worker["node_config"]["SecurityGroupIds"] == head["node_config"]["SecurityGroupIds"]
    assert config["idle_timeout_minutes"] <= 5
    node = json.loads((CLUSTER / "aws-node-policy.json").read_text())
    assert not [
        action for statement in node["Statement"] for action in actions(statement) if "ec2:" in action
    ]


@pytest.mark.parametrize("role", ["head", "node"])
def test_a_role_may_do_named_things_and_change_only_named_ones(role: str) -> None:
    for statement in json.loads((CLUSTER / f"aws-{role}-policy.json").read_text())["Statement"]:
        assert not [action for action in actions(statement) if "*" in action], statement["Sid"]
        reads = all(re.search(r":(Describe|GetAuthorizationToken)", action) for action in actions(statement))
        assert reads or statement["Resource"] != "*", statement["Sid"]


def actions(statement: dict[str, Any]) -> list[str]:
    found = statement["Action"]
    return [found] if isinstance(found, str) else list(found)


def test_kuberay_takes_every_ray_resource(schemas: dict[str, Any]) -> None:
    for kind, schema in schemas.items():
        assert manifests(kind)
        for manifest in manifests(kind):
            jsonschema.validate(manifest, schema)


def test_a_typo_deep_in_a_pod_is_caught(schemas: dict[str, Any]) -> None:
    (cluster,) = manifests("RayCluster")
    container = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["securityContext"] = {"allowPrivilegeEscalations": False}
    with pytest.raises(jsonschema.ValidationError, match="allowPrivilegeEscalations"):
        jsonschema.validate(cluster, schemas["RayCluster"])


def test_no_pod_runs_as_root_or_without_limits_or_an_unpinned_image() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            assert re.fullmatch(r"REGISTRY/facerec:\d+\.\d+\.\d+-(cpu|gpu)", container["image"])


def test_the_token_is_a_secrets_on_kubernetes_and_stands_in_no_file() -> None:
    spec = raycluster()
    secret = spec["authOptions"]["secretName"]
    assert spec["authOptions"]["mode"] == "token"
    for job in manifests("RayJob"):
        (container,) = job["spec"]["submitterPodTemplate"]["spec"]["containers"]
        given = {variable["name"]: variable for variable in container["env"]}
        assert given["RAY_AUTH_MODE"]["value"] == "token"
        assert given["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": secret, "key": "auth_token"}


def test_the_network_lets_in_the_cluster_submitters_and_those_who_watch() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in manifests("NetworkPolicy")}
    (cluster,) = manifests("RayCluster")
    own = {"ray.io/cluster": cluster["metadata"]["name"]}
    assert policies["facerec"]["podSelector"]["matchLabels"] == own
    for spec in policies.values():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
    for rule in policies["facerec"]["ingress"]:
        assert rule["from"]
        assert all(peer["podSelector"]["matchLabels"] for peer in rule["from"])
    for job in manifests("RayJob"):
        assert job["spec"]["clusterSelector"] == own
        labels = job["spec"]["submitterPodTemplate"]["metadata"]["labels"]
        assert labels == policies["facerec-submitter"]["podSelector"]["matchLabels"]


def test_every_stage_that_needs_a_cluster_has_a_job_that_stops_by_ctrl_c() -> None:
    stages = set()
    for job in manifests("RayJob"):
        script = re.search(r"/(jobs/\w+\.py)", job["spec"]["entrypoint"])
        assert script
        assert (ROOT / script[1]).exists()
        stages.add(script[1])
        assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert stages == {f"jobs/{stage}.py" for stage in ("align", "train", "embed", "evaluate")}


def test_all_files_name_the_ray_that_this_was_tested_with() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"ARG RAY_VERSION={ray.__version__}\n" in dockerfile
    assert f"\nray=={ray.__version__}\n" in (ROOT / "constraints.txt").read_text()
    assert raycluster()["rayVersion"] == ray.__version__


def test_the_image_is_built_of_pinned_packages_by_nobody_that_is_root() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER ray"]
    assert [line for line in lines if "pip install" in line and "-c constraints.txt" not in line] == []
    sources = [source for line in lines if line.startswith("COPY") for source in line.split()[2:-1]]
    ignored, *allowed = (
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"
    )
    assert ignored == "*"
    folders = {
        line[1:].split("/")[0] if line.startswith(("!facerec/", "!jobs/")) else line[1:] for line in allowed
    }
    assert set(sources) == folders


def test_a_job_is_given_rays_settings_of_jobs_and_no_secret() -> None:
    environment = yaml.safe_load((CLUSTER / "runtime_env.yaml").read_text())
    given = environment["env_vars"]
    assert given.pop("RAY_JOB_STOP_SIGNAL") == "SIGINT"
    assert int(given.pop("RAY_JOB_STOP_WAIT_TIME_S")) >= 10
    assert given == {name: value for name, value in ray_settings().items() if name.startswith("RAY_TRAIN")}
