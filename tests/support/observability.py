"""The queries in observability/ to the database and to Prometheus, as Grafana sends them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

FOLDER = Path(__file__).resolve().parents[2] / "observability"
PROVISIONING = FOLDER / "grafana/provisioning"
#: Grafana replaces these variables by a duration.
_RANGES = r"\$__(rate_interval|range)\b"


class Query(NamedTuple):
    """A SQL query. `kind`: the panel type, or `variable`, `annotation` or `alert`. `panel`: its JSON."""

    place: str
    kind: str
    sql: str
    panel: Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """A file of YAML or JSON."""
    text = path.read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text) if path.suffix == ".json" else YAML(typ="safe").load(text)
    return document


def dashboards() -> dict[str, dict[str, Any]]:
    """The dashboards, by file name."""
    return {path.name: read(path) for path in sorted((FOLDER / "grafana/dashboards").glob("*.json"))}


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels, including those in collapsed rows."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels", ())


def prometheus_rules() -> list[dict[str, Any]]:
    """The alerts that Prometheus evaluates."""
    return [rule for group in read(FOLDER / "alerts.yml")["groups"] for rule in group["rules"]]


def grafana_rules() -> list[dict[str, Any]]:
    """The alerts that Grafana evaluates."""
    return [rule for group in read(PROVISIONING / "alerting/rules.yml")["groups"] for rule in group["rules"]]


def sql_queries() -> list[Query]:
    """All queries from Grafana to the database."""
    found = []
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            found += [
                Query(f"{name}: {panel['title']}", panel["type"], target["rawSql"], panel)
                for target in panel.get("targets", ())
                if "rawSql" in target
            ]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                found.append(Query(f"{name}: ${variable['name']}", "variable", variable["query"], {}))
        for annotation in dashboard["annotations"]["list"]:
            if "target" in annotation:
                sql = annotation["target"]["rawSql"]
                found.append(Query(f"{name}: {annotation['name']}", "annotation", sql, annotation))
    for rule in grafana_rules():
        found += [
            Query(f"rules.yml: {rule['title']}", "alert", step["model"]["rawSql"], {})
            for step in rule["data"]
            if "rawSql" in step["model"]
        ]
    return found


def promql() -> dict[str, str]:
    """All Prometheus queries by place, with durations filled in."""
    found = {f"alerts.yml: {rule['alert']}, {rule['labels']['severity']}": rule["expr"] for rule in prometheus_rules()}
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel.get("targets", ()):
                if "expr" in target:
                    found[f"{name}: {panel['title']} {target['refId']}"] = re.sub(_RANGES, "1m", target["expr"])
    return found


def metrics(expression: str) -> set[str]:
    """The tickpipe metrics in an expression."""
    return set(re.findall(r"\btickpipe_\w+", expression))


def interpolated(sql: str, since: datetime, until: datetime, variables: Mapping[str, str]) -> str:
    """The SQL without macros. Raises AssertionError for an unknown macro."""

    def moment(at: datetime) -> str:
        return f"'{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}Z'"

    def quoted(found: re.Match[str]) -> str:
        return "'" + variables[found[1]].replace("'", "''") + "'"

    sql = re.sub(r"\$\{(\w+):sqlstring\}", quoted, sql)
    sql = sql.replace("$__timeFrom()", moment(since)).replace("$__timeTo()", moment(until))
    assert not re.search(r"\$[_{a-z]", sql), f"a macro that is not known here: {sql}"
    return sql


def readonly_sql(password: str, disk_alert_gb: str) -> str:
    """readonly.sql with its variables replaced, as psql sends it."""
    lines = (FOLDER / "readonly.sql").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("\\"))
    return text.replace(":'password'", f"'{password}'").replace(":'disk_alert_gb'", f"'{disk_alert_gb}'")
