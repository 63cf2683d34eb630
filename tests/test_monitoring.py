"""The dashboard and the alerts: that they are valid, say what they should, and use metrics that there are."""

import subprocess
from pathlib import Path

import pytest
import yaml

from afd_serve.packaging.handlers import handlers_dir
from afd_serve.telemetry import METRICS
from tests.monitoring import FOLDER, TRITON_METRICS, dashboard_expressions, metrics_in, panels, rules, tool

CATALOGUE = {name for metric in METRICS for name in metric.series}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def torchserve_metrics() -> set[str]:
    declared = yaml.safe_load((handlers_dir() / "metrics.yaml").read_text())["ts_metrics"]
    return {metric["name"] for kind in declared.values() for metric in kind}


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (job, mode) (rate(a_total{mode="b_total"}[5m] offset 1d)) / c > 5e5', {"a_total", "c"}),
        ("a unless on (x) b or 2 * (increase(c[1h]) and d)", {"a", "b", "c", "d"}),
    ],
)
def test_the_metrics_of_an_expression(expression: str, names: set[str]) -> None:
    assert metrics_in(expression) == names


def test_every_metric_in_use_is_one_that_there_is() -> None:
    used = {
        name for text in [*dashboard_expressions(), *(rule["expr"] for rule in rules())] for name in metrics_in(text)
    }
    assert used <= CATALOGUE | torchserve_metrics() | TRITON_METRICS | {"up"}
    assert used >= TRITON_METRICS


def test_the_dashboard_shows_the_whole_catalogue() -> None:
    shown = {name for expression in dashboard_expressions() for name in metrics_in(expression)}
    left_out = {metric.name for metric in METRICS if not shown & set(metric.series)}
    assert not left_out


def test_panels_differ_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    cells = [
        (x, y)
        for position in (panel["gridPos"] for panel in panels())
        for x in range(position["x"], position["x"] + position["w"])
        for y in range(position["y"], position["y"] + position["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert {x for x, _ in cells} <= set(range(24))


def test_the_example_and_its_rules_are_valid() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", FOLDER / "alerts.yaml")


def test_the_dashboards_queries_are_valid(tmp_path: Path) -> None:
    records = [{"record": f"panel:{i}", "expr": text} for i, text in enumerate(dashboard_expressions())]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    promtool("check", "rules", path)


def test_the_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", FOLDER / "alerts_test.yaml")


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    tests = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names
