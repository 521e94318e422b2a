"""The files for containers and GitHub match their schemas and the documented security rules. Nothing is started."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[3]


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = YAML(typ="safe").load(ROOT / name)
    return document


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = read("docker-compose.yml")["services"]
    return found


@pytest.fixture(scope="module")
def dockerfile() -> list[str]:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


SCHEMAS = {
    "docker-compose.yml": "vendor.compose-spec",
    ".github/workflows/*.yml": "vendor.github-workflows",
    ".github/dependabot.yml": "vendor.dependabot",
    ".github/ISSUE_TEMPLATE/[!c]*.yml": "vendor.github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "vendor.github-issue-config",
}


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (schema, str(path.relative_to(ROOT)))
        for pattern, schema in SCHEMAS.items()
        for path in sorted(ROOT.glob(pattern))
    ],
)
def test_file_matches_its_schema(schema: str, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(ROOT / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ports_are_bound_to_loopback(services: dict[str, dict[str, Any]]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not str(port).startswith("127.0.0.1:")] == []
    assert not any(service.get("network_mode") == "host" for service in services.values())


def test_consumer_can_be_scaled(services: dict[str, dict[str, Any]]) -> None:
    consumer = services["consumer"]
    assert "container_name" not in consumer
    assert "ports" not in consumer
    assert "CONSUMER_NAME" not in consumer["environment"]


def test_secrets_are_not_in_compose(services: dict[str, dict[str, Any]], dockerfile: list[str]) -> None:
    values = {
        name: str(value)
        for service in services.values()
        for name, value in service.get("environment", {}).items()
        if re.search("KEY|PASS|SECRET|TOKEN", name)
    }
    assert len(values) >= 2
    assert [name for name, value in values.items() if not value.startswith("${")] == []
    urls = [str(value) for service in services.values() for value in service.get("environment", {}).values()]
    assert [url for url in urls if re.search(r"://[^/@]*:[^/@]*@", url)] == []
    assert not any(re.search("KEY|PASSWORD", line) for line in dockerfile)


def test_redis_fsyncs_every_write(services: dict[str, dict[str, Any]]) -> None:
    command = " ".join(services["redis"]["command"])
    assert "--appendonly yes --appendfsync always --maxmemory-policy noeviction" in command


@pytest.mark.parametrize("name", ["redis", "timescaledb", "producer", "consumer"])
def test_services_restart_and_have_a_stop_grace_period(services: dict[str, dict[str, Any]], name: str) -> None:
    service = services[name]
    assert service["restart"] == "unless-stopped"
    assert int(service["stop_grace_period"].removesuffix("s")) > 10  # tickpipe's processes stop within 10 s
    if name in {"redis", "timescaledb"}:
        assert service["healthcheck"]["test"]
        assert not service["image"].endswith((":latest", service["image"].partition(":")[0]))
    else:
        assert service["command"] == [name]
        environment = service["environment"]
        assert (environment["METRICS_PORT"], environment["METRICS_HOST"]) == (9464, "0.0.0.0")
        assert "ports" not in service  # only within the network of the containers
        *python, code = service["healthcheck"]["test"]
        assert python == ["CMD", "python", "-c"]
        assert "http://127.0.0.1:9464/healthz" in code
        assert all(need["condition"] == "service_healthy" for need in service["depends_on"].values())


def test_data_and_spool_are_in_volumes(services: dict[str, dict[str, Any]], dockerfile: list[str]) -> None:
    kept = read("docker-compose.yml")["volumes"]
    for name in ("redis", "timescaledb", "producer"):
        volume, _, place = services[name]["volumes"][0].partition(":")
        assert volume in kept
        assert place.startswith("/")
    spool = services["producer"]["volumes"][0].partition(":")[2]
    assert any(line.startswith("ENV ") and f"SPOOL_DIR={spool}" in line for line in dockerfile)
    assert f"VOLUME {spool}" in dockerfile


def test_image_runs_as_a_non_root_user(dockerfile: list[str]) -> None:
    last_stage = dockerfile[max(n for n, line in enumerate(dockerfile) if line.startswith("FROM ")) :]
    users = [line.split()[1] for line in last_stage if line.startswith("USER ")]
    assert users
    assert users[-1] not in {"root", "0"}
    assert any("chown" in line and users[-1] in line for line in last_stage)


def test_containers_have_minimal_privileges(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"}
        assert not any("docker.sock" in volume for volume in service.get("volumes", ()))
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    for name in ("producer", "consumer"):
        assert (services[name]["read_only"], services[name]["cap_drop"]) == (True, ["ALL"])


def test_image_installs_packages_with_hashes(dockerfile: list[str]) -> None:
    installs = [line for line in dockerfile if re.search(r"\bpip (install|wheel)\b", line)]
    assert len(installs) == 4
    assert all("--require-hashes" in line or "--no-index" in line for line in installs)


def test_build_context_has_only_copied_files_and_no_secrets(dockerfile: list[str]) -> None:
    first, *rest = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert first == "*"
    let_in = {line.removeprefix("!") for line in rest if line.startswith("!")}
    copied = {
        source
        for line in dockerfile
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    assert copied == let_in
    assert all((ROOT / name).exists() for name in let_in)
    assert not any(name.startswith(".") for name in let_in)


def test_workflow_runs_make_test_on_supported_platforms() -> None:
    job = read(".github/workflows/test.yml")["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix == {
        "os": ["ubuntu-latest"],
        "python": ["3.11", "3.12", "3.13"],
        "include": [{"os": "macos-latest", "python": "3.12"}],
    }
    *before, command = [step["run"] for step in job["steps"] if "run" in step]
    assert command == "make test PYTHON=python"
    assert ["prometheus" in step for step in before] == [True, True]  # the runners of Linux and macOS have a browser
    assert any(step.get("uses", "").startswith("actions/setup-node@") for step in job["steps"])


def test_workflow_tests_oldest_newest_and_compose_timescaledb(services: dict[str, dict[str, Any]]) -> None:
    job = read(".github/workflows/test.yml")["jobs"]["timescaledb"]
    image, _, ours = services["timescaledb"]["image"].partition(":")
    assert job["services"]["timescaledb"]["image"] == f"{image}:${{{{ matrix.timescaledb }}}}"
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert {"2.13.1-pg16", "latest-pg17", ours} <= set(job["strategy"]["matrix"]["timescaledb"])
    last = job["steps"][-1]
    assert last["env"]["TIMESCALEDB_URL"].startswith("postgresql://")
    assert (ROOT / last["run"].split()[-1]).is_file()


def test_env_example_sets_nothing_and_names_required_variables() -> None:
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    named = {found[1] for line in lines if (found := re.match(r"# ([A-Z_]+)=", line))}
    asked = set(re.findall(r"\$\{([A-Z_]+):\?", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    assert asked
    assert asked <= named
