"""The files for Prometheus and Grafana: they fit together, and name only metrics, data sources and pages that exist.

Their SQL is run in tests/integration/test_observability.py; a real Prometheus reads its files in test_prometheus.py.
Grafana is never started.
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
#: Of Grafana 12; what is older was removed or replaced (graph, singlestat, table-old …).
PANELS = {"stat", "timeseries", "candlestick", "table", "state-timeline", "alertlist", "row"}

each_dashboard = pytest.mark.parametrize("name", dashboards())


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = YAML(typ="safe").load(COMPOSE)["services"]
    return found


def sources() -> dict[str, str]:
    """The provisioned data sources: type by uid."""
    return {each["uid"]: each["type"] for each in read(PROVISIONING / "datasources/tickpipe.yml")["datasources"]}


# --- Metrics


def test_every_metric_that_is_named_is_exposed(
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
    for text in expressions.values():  # what is asked of one kind of process is exposed by that kind
        for metric, job in re.findall(r'(tickpipe_\w+)\{job="(\w+)"\}', text):
            assert metric in exposed[job]


def test_every_metric_of_the_page_is_shown_or_watched() -> None:
    named = {re.sub(r"_(bucket|sum|count)$", "", metric) for text in promql().values() for metric in metrics(text)}
    assert named == {*table()["producer"], *table()["consumer"]}


def test_gauges_of_the_whole_group_are_never_summed() -> None:
    for place, text in promql().items():
        for gauge in ("tickpipe_lag_entries", "tickpipe_pending_entries"):
            assert not re.search(rf"sum[^(]*\({gauge}", text), place


def test_counters_are_asked_for_their_growth() -> None:
    for place, text in promql().items():
        for metric in metrics(text):
            if re.search("_(total|bucket|sum|count)$", metric):
                assert re.search(rf"(rate|increase)\({metric}\b", text), f"{place}: {metric}"


# --- Alerts


def test_the_alerts_are_those_of_the_runbook() -> None:
    of_prometheus = {rule["alert"] for rule in prometheus_rules()}
    of_grafana = {rule["title"] for rule in grafana_rules()}
    assert of_prometheus | of_grafana == ALERTS
    assert of_prometheus & of_grafana == set()


def test_each_alert_says_what_it_is_what_to_do_and_where_to_read_more() -> None:
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


def test_no_alert_rests_on_the_age_of_ticks() -> None:
    texts = [rule["expr"] for rule in prometheus_rules()]
    texts += [query.sql for query in sql_queries() if query.kind == "alert"]
    assert not any(re.search("received|events_appended|prices_real_time|rows_stored", text) for text in texts)


def test_alerts_of_grafana_are_whole_and_need_no_interpolation() -> None:
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
    # Grafana replaces $NAME in annotations, not in SQL: neither is relied upon.
    assert "$" not in (PROVISIONING / "alerting/rules.yml").read_text(encoding="utf-8")


@pytest.mark.skipif(
    shutil.which("promtool") is None and not os.environ.get("CI"), reason="promtool (of Prometheus) is not installed"
)
def test_promtool_accepts_configuration_and_rules() -> None:
    subprocess.run(["promtool", "check", "config", str(FOLDER / "prometheus.yml")], check=True)
    subprocess.run(["promtool", "test", "rules", str(ROOT / "tests/support/alerts_test.yml")], check=True)


# --- Dashboards


@each_dashboard
def test_panels_have_places_and_numbers_of_their_own(name: str) -> None:
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
def test_panels_say_what_they_show_in_which_unit(name: str) -> None:
    for panel in panels(dashboards()[name]):
        assert panel["type"] in PANELS
        assert panel["title"]
        if panel["type"] == "row":
            continue
        assert len(panel["description"]) > 20, panel["title"]
        if panel["type"] not in {"table", "alertlist"}:  # those have units by the column
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@each_dashboard
def test_every_query_goes_to_a_data_source_that_is_provisioned(name: str) -> None:
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


def test_dashboards_are_told_apart_and_link_to_each_other() -> None:
    found = {each["uid"]: each for each in dashboards().values()}
    assert found.keys() == {"tickpipe-prices", "tickpipe-pipeline"}
    assert all(each["schemaVersion"] == 41 for each in found.values())
    links = {link["url"].removeprefix("/d/") for each in found.values() for link in each["links"]}
    assert links == found.keys()


# --- Compose


def test_the_profile_is_off_unless_asked_for(services: dict[str, dict[str, Any]]) -> None:
    assert {name for name, service in services.items() if "profiles" in service} == set(PROFILE)
    for name in services.keys() - PROFILE:
        assert not services[name].get("depends_on", {}).keys() & set(PROFILE)
    # Compose asks for a ${…:?} of a profile that is off too.
    asked = {name: re.findall(r"(?<!\$)\$\{(\w+):\?", str(service)) for name, service in services.items()}
    others = set().union(*(names for name, names in asked.items() if name not in PROFILE))
    assert set().union(*(asked[name] for name in PROFILE)) <= others


@pytest.mark.parametrize("name", PROFILE)
def test_services_of_the_profile_are_pinned_and_read_their_files_only(
    services: dict[str, dict[str, Any]], name: str
) -> None:
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


def test_the_role_is_made_with_the_psql_of_the_database(services: dict[str, dict[str, Any]]) -> None:
    assert services["grafana-role"]["image"] == services["timescaledb"]["image"]
    assert services["grafana"]["depends_on"]["grafana-role"]["condition"] == "service_completed_successfully"


@pytest.mark.parametrize("name", ["grafana", "grafana-role"])
@pytest.mark.parametrize("password", ["", "it's a $ecret"])
def test_nothing_starts_without_a_password(
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


def test_grafana_asks_for_a_login_and_reads_with_the_role(services: dict[str, dict[str, Any]]) -> None:
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


def test_prometheus_reads_every_process_and_the_rules(services: dict[str, dict[str, Any]]) -> None:
    configuration = read(FOLDER / "prometheus.yml")
    for job in configuration["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        assert found["names"] == [job["job_name"]]
        assert found["type"] == "A"  # an address for each container of the service
        assert found["port"] == services[job["job_name"]]["environment"]["METRICS_PORT"]
    assert {job["job_name"] for job in configuration["scrape_configs"]} == {"producer", "consumer"}
    mounted = {mount.split(":")[1] for mount in services["prometheus"]["volumes"]}
    assert {f"/etc/prometheus/{name}" for name in ("prometheus.yml", *configuration["rule_files"])} <= mounted
