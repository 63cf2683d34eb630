"""A real Prometheus that reads a real server, set up as monitoring/ shows it."""

import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from afd_serve.errors import ServingError
from afd_serve.mode import Mode
from afd_serve.servers.http import ask
from afd_serve.servers.ports import free_ports
from afd_serve.telemetry import EXPLANATION_FAILURES, EXPLANATIONS, METRICS
from tests.monitoring import FOLDER, dashboard_expressions, metrics_in, rules, tool


def catalogue(job: str) -> set[str]:
    """The series of our own that a server has; only TorchServe has a route for explanations."""
    only_torchserves = () if job == "torchserve" else (EXPLANATIONS, EXPLANATION_FAILURES)
    metrics = [metric for metric in METRICS if metric not in only_torchserves]
    return {name for metric in metrics for name in metric.series}


class Prometheus:
    """What answers at a port of this machine."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def query(self, expression: str) -> list[Any]:
        """The vector that an expression gives now."""
        result: list[Any] = self._get(f"/query?{urllib.parse.urlencode({'query': expression})}")["result"]
        return result

    def names(self) -> set[str]:
        """The names of our series that have been read."""
        return {series["metric"]["__name__"] for series in self.query('{__name__=~"afd_.*"}')}

    def pictures(self) -> float:
        """How many pictures the server has counted."""
        ((_, value),) = (series["value"] for series in self.query("sum(afd_pictures_total)"))
        return float(value)

    def rules(self) -> list[dict[str, Any]]:
        """The rules with their state."""
        return [rule for group in self._get("/rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str) -> Any:
        answer = ask(urllib.request.Request(self._url + path), 10)
        if answer.status != 200:
            raise ServingError(f"{path} was answered {answer.status}: {answer.body.decode()}")
        return answer.json()["data"]


@contextmanager
def reading(job: str, metrics_port: int, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the shipped settings, but for one server alone, at this port, and in quick succession."""
    binary = tool("prometheus")
    settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (own,) = [entry for entry in settings["scrape_configs"] if entry["job_name"] == job]
    own["static_configs"] = [{"targets": [f"127.0.0.1:{metrics_port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings | {"scrape_configs": [own]}))
    shutil.copy(FOLDER / "alerts.yaml", folder)
    (port,) = free_ports(1)
    command = [str(binary), f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)
    try:
        found = Prometheus(port)
        wait_until(lambda: bool(found.query(f'up{{job="{job}"}} == 1')), folder / "prometheus.log")
        yield found
    finally:
        process.terminate()
        process.wait(20)


def wait_until(condition: Callable[[], bool], log: Path) -> None:
    """Wait for what will be so soon; whoever waits in vain reads the log."""
    limit = time.monotonic() + 30
    while True:
        try:
            if condition():
                return
        except ServingError as error:  # it may still be starting
            reason = str(error)
        else:
            reason = "it is not so"
        assert time.monotonic() < limit, f"{reason}; {log.read_text()[-2000:]}"
        time.sleep(0.2)


def check(job: str, metrics_port: int, folder: Path, ask_all: Callable[[], None]) -> None:
    """Let Prometheus see requests come, and ask it what the dashboard asks.

    Args:
        job: The server's kind.
        metrics_port: Where it publishes.
        folder: For Prometheus's files.
        ask_all: Sends usable pictures in each mode, and one that is not.
    """
    with reading(job, metrics_port, folder) as prometheus:
        log = folder / "prometheus.log"
        ask_all()
        wait_until(lambda: prometheus.names() >= catalogue(job), log)
        before = prometheus.pictures()
        ask_all()
        wait_until(lambda: prometheus.pictures() >= before + len(Mode), log)
        for expression in dashboard_expressions():
            assert prometheus.query(expression) or not metrics_in(expression) <= catalogue(job), expression
        wait_until(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()), log)
        assert {rule["name"] for rule in prometheus.rules()} == {rule["alert"] for rule in rules()}
