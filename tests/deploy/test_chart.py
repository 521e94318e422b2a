"""The Helm chart: rendered by Helm itself, and valid by strict schemas of Kubernetes, KEDA and Prometheus."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "tickpipe"
KUBERNETES = "1.32"
Manifest = dict[str, Any]
Values = dict[str, Any]

SECRET = {"name": "tickpipe"}
REDIS_CLUSTER = {"kind": "cluster", "addresses": ["redis-0:6379", "redis-1:6379"], "tls": True, "username": "scaler"}
SENTINELS = {"kind": "sentinel", "addresses": ["sentinel-0:26379", "sentinel-1:26379"], "sentinelMaster": "ticks"}
CASES: dict[str, Values] = {
    "least": {"secret": SECRET},
    "one server": {"secret": SECRET, "keda": {"enabled": True, "minReplicas": 0}, "partitions": 3},
    "sentinel": {
        "secret": SECRET | {"redisPassword": "redis-password"},
        "producer": {"standby": True, "redisReplicas": 1, "env": {"LEASE": 3}},
        "keda": {"enabled": True, "redis": SENTINELS},
        "podDisruptionBudget": {"enabled": False},
    },
    "cluster": {
        "secret": SECRET | {"redisPassword": "redis-password"},
        "partitions": 8,
        "symbols": [f"S{number}" for number in range(1000)],
        "producer": {"shards": 5, "maxSymbolsPerConnection": 500, "spool": {"size": "10Gi", "storageClass": "fast"}},
        "consumer": {"partitions": "0-3", "env": {"MAX_BATCH_SIZE": 5000}},
        "keda": {"enabled": True, "redis": REDIS_CLUSTER, "maxReplicas": 40},
        "networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {"matchLabels": {"x": "monitoring"}}}]},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "every option": {
        "secret": SECRET,
        "image": {"repository": "registry.example/tickpipe", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
        "producer": {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "feed", "operator": "Exists"}]},
        "consumer": {"replicas": 5, "nodeSelector": {"disk": "ssd"}, "tolerations": [{"operator": "Exists"}]},
        "networkPolicy": {"enabled": True, "redisPorts": [6380, 26379]},
        "serviceMonitor": {"enabled": True},
    },
}  # fmt: skip


def rendered(values: Values, name: str = "demo") -> list[Manifest]:
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=name, namespace="ticks")
    return [
        cast("Manifest", manifest)
        for path, text in sorted(files.items())
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def of_kind(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def strict(schema: Any) -> Any:
    """The schema, without room for fields that it does not name."""
    if isinstance(schema, dict):
        schema = {key: strict(value) for key, value in schema.items()}
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    elif isinstance(schema, list):
        schema = [strict(each) for each in schema]
    return schema


CUSTOM = {
    "ScaledObject": strict(keda.ScaledObject.model_json_schema(by_alias=True)),
    "ServiceMonitor": strict(prometheus.ServiceMonitor.model_json_schema(by_alias=True)),
}


def validate(manifest: Mapping[str, Any]) -> None:
    if schema := CUSTOM.get(manifest["kind"]):
        jsonschema.validate(manifest, schema)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_valid_by_strict_schemas(case: str) -> None:
    manifests = rendered(CASES[case])
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(names)) == len(names)
    for manifest in manifests:
        validate(manifest)


@pytest.mark.parametrize("case", CASES)
def test_helm_finds_nothing_wrong(case: str) -> None:
    found = helm.lint(str(CHART), CASES[case], strict=True)
    assert found["errors"] == []
    assert [each["error"] for each in found["messages"]] == ["icon is recommended"]


def fields(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of the fields whose names Kubernetes or an operator gives."""
    free = {"labels", "matchLabels", "metadata", "requests", "limits", "nodeSelector"}
    if isinstance(node, dict):
        for name, value in node.items():
            yield (*path, name)
            if name not in free:
                yield from fields(value, (*path, name))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from fields(value, (*path, number))


def test_each_misspelled_field_is_found() -> None:
    """The schemas are strict, so they would find a mistake of ours."""
    tried = 0
    for manifest in rendered(CASES["cluster"]):
        paths = [("spec", *path) for path in fields(manifest.get("spec", {}))]
        for path in paths:
            if manifest["kind"] == "Service" and path[:2] == ("spec", "selector") and len(path) > 2:
                continue  # labels
            wrong = copy.deepcopy(manifest)
            parent: Any = wrong
            for step in path[:-1]:
                parent = parent[step]
            parent[f"{path[-1]}x"] = parent.pop(path[-1])
            with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
                validate(wrong)
            tried += 1
    assert tried > 300


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"secret": {}},
        {"secret": SECRET, "partition": 8},
        {"secret": SECRET, "partitions": 0},
        {"secret": SECRET, "producer": {"shard": 5}},
        {"secret": SECRET, "producer": {"shards": 5, "standby": True}},
        {"secret": SECRET, "keda": {"enabled": True, "redis": {"kind": "sentinel", "addresses": ["s:26379"]}}},
        {"secret": SECRET, "keda": {"redis": {"kind": "server", "addresses": ["a:1", "b:1"]}}},
        {"secret": SECRET, "consumer": {"partitions": "0..3"}},
        {"secret": SECRET, "symbols": []},
    ],
    ids=str,
)
def test_wrong_values_are_refused(wrong: Values) -> None:
    with pytest.raises(helm.HelmError):
        rendered(wrong)


@pytest.mark.parametrize("case", CASES)
def test_pods_are_restricted(case: str) -> None:
    """As the Pod Security Standard "restricted" demands, with a read-only root and secrets by reference only."""
    manifests = rendered(CASES[case])
    workloads = [manifest for kind in ("StatefulSet", "Deployment", "Job") for manifest in of_kind(manifests, kind)]
    assert len(workloads) == 3
    for workload in workloads:
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            for variable in container["env"]:
                if variable["name"] in {"REDIS_URL", "DATABASE_URL", "TWELVE_DATA_API_KEY", "REDIS_PASSWORD"}:
                    assert variable["valueFrom"]["secretKeyRef"]["name"] == "tickpipe"


def environ(manifest: Manifest) -> dict[str, str]:
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", "") for each in container["env"]}


def test_shards_are_numbered_from_one() -> None:
    (producer,) = of_kind(rendered(CASES["cluster"]), "StatefulSet")
    assert (producer["spec"]["replicas"], producer["spec"]["ordinals"]) == (5, {"start": 1})
    assert environ(producer)["SHARD"] == "$(POD_INDEX)/5"
    (pair,) = of_kind(rendered(CASES["sentinel"]), "StatefulSet")
    assert pair["spec"]["replicas"] == 2
    assert environ(pair)["STANDBY"] == "1"
    assert "SHARD" not in environ(pair)
    assert environ(pair)["LEASE"] == "3"


def test_feed_of_an_exchange_needs_no_key() -> None:
    for feed in ("twelvedata", "coinbase"):
        manifests = rendered({"secret": SECRET, "feed": feed})
        (producer,) = of_kind(manifests, "StatefulSet")
        found = environ(producer)
        assert found["FEED"] == feed
        assert ("TWELVE_DATA_API_KEY" in found) == (feed == "twelvedata")


def test_large_numbers_keep_their_digits() -> None:
    """Helm reads the numbers of a file as floats."""
    values = {
        "secret": SECRET,
        "producer": {"env": {"SPOOL_MAX": 1073741824}, "maxSymbolsPerConnection": 1_000_000},
        "consumer": {"env": {"STREAM_KEEP_BYTES": 268435456, "CLAIM_IDLE": 2.5}},
        "keda": {"enabled": True, "lagCount": 5_000_000, "cooldownPeriod": 1_000_000},
    }
    manifests = rendered(values)
    for manifest in manifests:
        validate(manifest)
    ((producer,), (consumer,), (scaled,)) = (
        of_kind(manifests, kind) for kind in ("StatefulSet", "Deployment", "ScaledObject")
    )
    assert environ(producer)["SPOOL_MAX"] == "1073741824"
    assert environ(producer)["MAX_SYMBOLS_PER_CONNECTION"] == "1000000"
    assert environ(consumer)["STREAM_KEEP_BYTES"] == "268435456"
    assert environ(consumer)["CLAIM_IDLE"] == "2.5"
    assert scaled["spec"]["triggers"][0]["metadata"]["lagCount"] == "5000000"
    assert scaled["spec"]["cooldownPeriod"] == 1_000_000


def test_special_characters_of_names_are_kept() -> None:
    values = {"secret": SECRET, "consumerGroup": "a #b", "producer": {"spool": {"storageClass": "-"}}}
    manifests = rendered(values)
    (job,) = of_kind(manifests, "Job")
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][-1] == "--consumer-group=a #b"
    (producer,) = of_kind(manifests, "StatefulSet")
    assert producer["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] == "-"


def test_streams_exist_before_anything_scales_on_them() -> None:
    manifests = rendered(CASES["cluster"])
    (job,) = of_kind(manifests, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    (setup,) = job["spec"]["template"]["spec"]["containers"]
    assert setup["args"][:3] == ["tickpipe", "create-streams", "--partitions=8"]
    (deployment,) = of_kind(manifests, "Deployment")
    assert "replicas" not in deployment["spec"], "KEDA decides"


@pytest.mark.parametrize(
    ("case", "kind", "streams"),
    [
        ("one server", "redis-streams", ["prices:{0}", "prices:{1}", "prices:{2}"]),
        ("sentinel", "redis-sentinel-streams", ["prices"]),
        ("cluster", "redis-cluster-streams", [f"prices:{{{number}}}" for number in range(4)]),
    ],
)
def test_each_channel_that_is_served_has_a_trigger(case: str, kind: str, streams: list[str]) -> None:
    (scaled,) = of_kind(rendered(CASES[case]), "ScaledObject")
    triggers = scaled["spec"]["triggers"]
    assert {trigger["type"] for trigger in triggers} == {kind}
    assert [trigger["metadata"]["stream"] for trigger in triggers] == streams
    assert all(isinstance(value, str) for trigger in triggers for value in trigger["metadata"].values())
