"""The files for Prometheus and Grafana are consistent and use only existing metrics, data sources and pages.

tests/integration/test_observability.py runs their SQL, and test_prometheus.py starts a real Prometheus. Grafana is
never started.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support.observability import (
    FOLDER,
    PROVISIONING,
    dashboards,
    grafana_rules,
    metrics,
    panels,
    prometheus_rules,
    promql,
    read,
    sql_queries,
)
from tests.unit.conftest import StreamMaker
from tests.unit.test_metrics import Consumer, families, producing, table

ROOT = FOLDER.parent
COMPOSE = ROOT / "docker-compose.yml"
PROFILE = ["prometheus", "grafana", "grafana-role"]
ALERTS = {"FeedSilent", "LagGrowing", "DeadLetters", "SpoolInUse", "SessionIncomplete", "DiskFilling", "ProcessDown"}
#: Panel types of Grafana 12, without removed ones (graph, singlestat, table-old …).
PANELS = {"stat", "timeseries", "candlestick", "table", "state-timeline", "alertlist", "row"}

each_dashboard = pytest.mark.parametrize("name", dashboards())


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = YAML(typ="safe").load(COMPOSE)["services"]
    return found


def sources() -> dict[str, str]:
    """The type of each provisioned data source, by uid."""
    return {each["uid"]: each["type"] for each in read(PROVISIONING / "datasources/tickpipe.yml")["datasources"]}


# --- Metrics


def test_referenced_metrics_are_exposed(
    tmp_path: Path, make_stream: StreamMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = Consumer(make_stream, monkeypatch)
    consumer.prices.ensure_group()
    consumer.feed.ensure_group()
    consumer.backlog.update()
    with producing(tmp_path) as producer:
        collectors = {"producer": producer.metrics, "consumer": consumer.metrics}
        exposed = {
            job: {sample.name for family in families(each) for sample in family.samples}
            for job, each in collectors.items()
        }
    expressions = promql()
    assert len(expressions) > 30
    known = set().union(*exposed.values())
    assert {place: unknown for place, text in expressions.items() if (unknown := metrics(text) - known)} == {}
    for text in expressions.values():  # the process that a query selects exposes the metric
        for metric, job in re.findall(r'(tickpipe_\w+)\{job="(\w+)"\}', text):
            assert metric in exposed[job]


def test_documented_metrics_are_used_in_a_panel_or_alert() -> None:
    named = {re.sub(r"_(bucket|sum|count)$", "", metric) for text in promql().values() for metric in metrics(text)}
    assert named == {*table()["producer"], *table()["consumer"]}


def test_group_wide_gauges_are_never_summed() -> None:
    for place, text in promql().items():
        for gauge in ("tickpipe_lag_entries", "tickpipe_pending_entries"):
            assert not re.search(rf"sum[^(]*\({gauge}", text), place


def test_counters_are_queried_by_rate() -> None:
    for place, text in promql().items():
        for metric in metrics(text):
            if re.search("_(total|bucket|sum|count)$", metric):
                assert re.search(rf"(rate|increase)\({metric}\b", text), f"{place}: {metric}"


# --- Alerts


def test_alerts_match_the_runbook() -> None:
    of_prometheus = {rule["alert"] for rule in prometheus_rules()}
    of_grafana = {rule["title"] for rule in grafana_rules()}
    assert of_prometheus | of_grafana == ALERTS
    assert of_prometheus & of_grafana == set()


def test_alerts_have_summary_action_and_runbook_link() -> None:
    named = [(rule["alert"], rule) for rule in prometheus_rules()] + [(each["title"], each) for each in grafana_rules()]
    page = ROOT / "docs/operations.md"
    headings = page.read_text(encoding="utf-8") if page.exists() else None
    for name, rule in named:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert len(rule["annotations"]["description"]) > 60
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#alert-{name.lower()}"
        if headings is not None:
            assert re.search(rf"^#+ Alert: {name}$", headings, re.MULTILINE)


def test_no_alert_depends_on_tick_age() -> None:
    texts = [rule["expr"] for rule in prometheus_rules()]
    texts += [query.sql for query in sql_queries() if query.kind == "alert"]
    assert not any(re.search("received|events_appended|prices_real_time|rows_stored", text) for text in texts)


def test_grafana_alerts_are_complete_and_use_no_interpolation() -> None:
    rules = grafana_rules()
    assert len({rule["uid"] for rule in rules}) == len(rules)
    for rule in rules:
        steps = {step["refId"]: step for step in rule["data"]}
        condition = steps[rule["condition"]]
        assert condition["datasourceUid"] == "__expr__"
        assert condition["model"]["expression"] in steps
        for name, step in steps.items():
            assert step["model"]["refId"] == name
            assert step["datasourceUid"] in {*sources(), "__expr__"}
            assert step["model"]["datasource"]["uid"] == step["datasourceUid"]
    # Grafana replaces $NAME in annotations but not in SQL. The files use neither.
    assert "$" not in (PROVISIONING / "alerting/rules.yml").read_text(encoding="utf-8")


@pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CI"), reason="promtool (of Prometheus) is not installed"
)
def test_promtool_accepts_configuration_and_rules() -> None:
    subprocess.run(["promtool", "check", "config", str(FOLDER / "prometheus.yml")], check=True)
    subprocess.run(["promtool", "test", "rules", str(ROOT / "tests/support/alerts_test.yml")], check=True)


# --- Dashboards


@each_dashboard
def test_panels_have_unique_ids_and_do_not_overlap(name: str) -> None:
    found = list(panels(dashboards()[name]))
    assert len({panel["id"] for panel in found}) == len(found)
    places = {panel["title"] + str(panel["id"]): panel["gridPos"] for panel in found}
    for place in places.values():
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for (one, a), (other, b) in combinations(places.items(), 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], f"{one} lies on {other}"


@each_dashboard
def test_panels_have_titles_descriptions_and_units(name: str) -> None:
    for panel in panels(dashboards()[name]):
        assert panel["type"] in PANELS
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert len(panel["description"]) > 20, panel["title"]
        if panel["type"] not in {"table", "alertlist"}:  # these panels have units by column
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@each_dashboard
def test_queries_use_provisioned_data_sources(name: str) -> None:
    dashboard = dashboards()[name]
    asked = [each for panel in panels(dashboard) for each in (panel, *panel.get("targets", ()))]
    asked += [each for each in dashboard["annotations"]["list"] if not each.get("builtIn")]
    asked += [each for each in dashboard["templating"]["list"] if each["type"] == "query"]
    found = [each["datasource"] for each in asked if "datasource" in each]
    assert found
    assert all(sources().get(source["uid"]) == source["type"] for source in found)
    for panel in panels(dashboard):
        references = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(references)) == len(references)


def test_dashboards_have_unique_ids_and_link_to_each_other() -> None:
    found = {each["uid"]: each for each in dashboards().values()}
    assert found.keys() == {"tickpipe-prices", "tickpipe-pipeline"}
    assert all(each["schemaVersion"] == 41 for each in found.values())
    links = {link["url"].removeprefix("/d/") for each in found.values() for link in each["links"]}
    assert links == found.keys()


# --- Compose


def test_observability_profile_is_off_by_default(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "profiles" in service} == set(PROFILE)
    for name in services.keys() - PROFILE:
        assert not services[name].get("depends_on", {}).keys() & set(PROFILE)
    # Compose requires ${…:?} even of an inactive profile.
    asked = {name: re.findall(r"(?<!\$)\$\{(\w+):\?", str(service)) for name, service in services.items()}
    others = set().union(*(names for name, names in asked.items() if name not in PROFILE))
    assert set().union(*(asked[name] for name in PROFILE)) <= others


@pytest.mark.parametrize("name", PROFILE)
def test_observability_services_are_pinned_with_read_only_files(services: dict[str, dict[str, Any]], name: str) -> None:
    service = services[name]
    assert service["profiles"] == ["observability"]
    assert re.search(r":v?\d+\.\d+\.\d+", service["image"])
    assert service.get("user") not in {"root", "0", "0:0"}
    kept = YAML(typ="safe").load(COMPOSE)["volumes"]
    for mount in service["volumes"]:
        source, _, target = mount.partition(":")
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
            assert target.endswith(":ro")
        else:
            assert source in kept
    if name != "grafana-role":
        assert service["healthcheck"]["test"]
        assert service["restart"] == "unless-stopped"
        assert int(service["stop_grace_period"].removesuffix("s")) > 10


def test_grafana_role_is_created_with_the_database_image(services: dict[str, dict[str, Any]]) -> None:
    assert services["grafana-role"]["image"] == services["timescaledb"]["image"]
    assert services["grafana"]["depends_on"]["grafana-role"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", ["grafana", "grafana-role"])
@pytest.mark.parametrize("password", ["", "it's a $ecret"])
def test_observability_needs_passwords(
    services: dict[str, dict[str, Any]], tmp_path: Path, name: str, password: str
) -> None:
    service = services[name]
    assert service["environment"]["GRAFANA_PASSWORD"] == "${GRAFANA_PASSWORD:-}"
    (command,) = service["command"]
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nenv\n", encoding="utf-8")
    program.chmod(0o755)
    command = re.sub("exec (/run.sh|psql)", f"exec {program}", command.replace("$$", "$"))
    done = subprocess.run(
        [*service["entrypoint"], command],
        env={"PATH": os.environ["PATH"], "GRAFANA_PASSWORD": password},
        capture_output=True,
        text=True,
        check=False,
    )
    if not password:
        assert done.returncode != 0
        assert "GRAFANA_PASSWORD: write it into .env, see .env.example" in done.stderr
    else:
        assert done.returncode == 0
        assert name != "grafana" or f"GF_SECURITY_ADMIN_PASSWORD={password}\n" in done.stdout


def test_grafana_requires_login_and_uses_the_read_only_role(services: dict[str, dict[str, Any]]) -> None:
    environment = services["grafana"]["environment"]
    assert environment["GF_AUTH_ANONYMOUS_ENABLED"] == environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    (provider,) = read(PROVISIONING / "dashboards/tickpipe.yml")["providers"]
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in services["grafana"]["volumes"]}
    assert ROOT / mounted[provider["options"]["path"]] == FOLDER / "grafana/dashboards"
    assert ROOT / mounted["/etc/grafana/provisioning"] == PROVISIONING
    home = Path(environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.name in dashboards()
    database, prometheus = read(PROVISIONING / "datasources/tickpipe.yml")["datasources"]
    assert database["jsonData"]["timescaledb"] is True
    assert f"CREATE ROLE {database['user']};" in (FOLDER / "readonly.sql").read_text(encoding="utf-8")
    assert database["secureJsonData"] == {"password": "$GRAFANA_PASSWORD"}
    assert database["url"] == "timescaledb:5432"
    assert database["jsonData"]["database"] == services["timescaledb"]["environment"]["POSTGRES_DB"]
    assert prometheus["url"] == "http://prometheus:9090"


def test_prometheus_scrapes_every_process_and_loads_the_rules(services: dict[str, dict[str, Any]]) -> None:
    configuration = read(FOLDER / "prometheus.yml")
    for job in configuration["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        assert found["names"] == [job["job_name"]]
        assert found["type"] == "A"  # an address for each container of the service
        assert found["port"] == services[job["job_name"]]["environment"]["METRICS_PORT"]
    assert {job["job_name"] for job in configuration["scrape_configs"]} == {"producer", "consumer"}
    mounted = {mount.split(":")[1] for mount in services["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in ("prometheus.yml", *configuration["rule_files"])} <= mounted
