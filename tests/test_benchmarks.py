"""Benchmarks hold on to what was measured, and go on where a server fails."""

import asyncio
import importlib
import itertools
import os
import signal
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

Module = Callable[[str], ModuleType]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize(
    "change",
    [
        {"size": 160},
        {"labelled": Path("other.csv")},
        {"split": "dev"},
        {"limit": 3},
        {"images": "other,folders"},
        {"steps": 3},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_of_an_ablation_are_kept_for_the_same_arguments_alone(
    module: Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, object]
) -> None:
    ablation, computed = module("ablation"), list[Namespace]()

    def compute(_variant: object, arguments: Namespace, _backbone: object, _out: Path) -> object:
        computed.append(arguments)
        return ablation.Outcome("title", len(computed), 0.5, (0.5, 0.4, 0.6))

    monkeypatch.setattr(ablation, "compute", compute)
    backbone, common = SimpleNamespace(fingerprint="0123456789abcdef"), {"out": tmp_path, "workers": 1}
    given = {"images": "a,b", "labelled": Path("l.csv"), "split": None, "limit": 2, "steps": 2, "size": 128, "seed": 0}
    first = Namespace(**common, **given)
    assert [ablation.outcome_of("lite", first, backbone).parameters for _ in range(2)] == [1, 1]
    changed = Namespace(**common, **given | change)
    assert [ablation.outcome_of("lite", changed, backbone).parameters for _ in range(2)] == [2, 2]
    assert ablation.outcome_of("lite", first, backbone).parameters == 1


def test_another_number_of_pictures_to_measure_on_needs_no_other_fit(
    module: Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ablation, fits = module("ablation"), list[Path]()

    def compute(_variant: object, _arguments: Namespace, _backbone: object, out: Path) -> object:
        fits.append(out)
        return ablation.Outcome("title", 1, 0.5, (0.5, 0.4, 0.6))

    monkeypatch.setattr(ablation, "compute", compute)
    backbone, given = SimpleNamespace(fingerprint="0123456789abcdef"), {"out": tmp_path, "images": "a", "split": None}
    for limit in (2, 3):
        arguments = Namespace(**given, labelled=Path("l.csv"), limit=limit, steps=2, size=128, seed=0)
        ablation.outcome_of("lite", arguments, backbone)
    assert fits[0] == fits[1]


@contextmanager
def failing_server(statuses: Iterable[int]) -> Iterator[int]:
    """Answers with these statuses in turn, and closes the connection behind a failure, as TorchServe; its port."""
    turns = iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = next(turns)
            self.send_response(status)
            self.send_header("Content-Length", "2")
            if status != 200:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False  # so that all of them have ended behind this
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("loop", ["closed", "opened"])
def test_load_goes_on_behind_answers_after_which_the_server_closes_the_connection(module: Module, loop: str) -> None:
    serving = module("serving")

    with failing_server(itertools.cycle([200, 503, 200])) as port:
        server = SimpleNamespace(ports=SimpleNamespace(inference=port), model="afd", token=lambda: "key")
        load = serving.Load(server, "", [b"picture"])
        asyncio.run(load.closed(12, 2) if loop == "closed" else load.opened(12, 1000, connections=2))
    assert load.failed == 4


@pytest.fixture
def workers(module: Module, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The scenario without a server: load that does nothing, and a recovery at once."""
    scenario, traffic = module("fault_scenarios.workers"), module("fault_scenarios.traffic")

    @asynccontextmanager
    async def under_load(_endpoint: object) -> AsyncIterator[object]:
        yield SimpleNamespace(tally=traffic.Tally())

    async def recovered(*_: object) -> float:
        return 1.0

    monkeypatch.setattr(scenario, "under_load", under_load)
    monkeypatch.setattr(scenario, "recovered", recovered)
    return scenario


def bench() -> SimpleNamespace:
    async def wait(_seconds: float, _what: str) -> None:
        await asyncio.sleep(0.03)

    return SimpleNamespace(endpoint=SimpleNamespace(server=None), seconds=0.05, workers=1, wait=wait)


@pytest.mark.parametrize("seemingly_ready", [True, False])
def test_a_scenario_in_which_no_worker_could_be_killed_complains(
    workers: ModuleType, monkeypatch: pytest.MonkeyPatch, seemingly_ready: bool
) -> None:
    async def ready_workers(_server: object) -> set[int]:
        return {4_000_000} if seemingly_ready else set()

    def kill(_pid: int, _signal: int) -> None:
        raise ProcessLookupError  # it has just ended

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(workers, "ready_workers", ready_workers)
    outcome = asyncio.run(workers.kill_workers(bench()))
    assert outcome.figures["kills"] == 0
    assert outcome.all_complaints() == ["no worker was ever ready to be killed"]


def test_workers_that_are_ready_are_killed(workers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ready_workers(_server: object) -> set[int]:
        return {4_000_000 + len(killed)}

    killed = list[tuple[int, int]]()
    monkeypatch.setattr(os, "kill", lambda *call: killed.append(call))
    monkeypatch.setattr(workers, "ready_workers", ready_workers)
    outcome = asyncio.run(workers.kill_workers(bench()))
    assert outcome.figures["kills"] == len(killed) > 0
    assert {sent for _, sent in killed} == {signal.SIGKILL}
    assert not outcome.all_complaints()


def test_made_pictures_are_the_same_each_time(module: Module) -> None:
    pictures = module("pictures")
    first, again = pictures.made_jpegs(2), pictures.made_jpegs(2)
    assert first == again
    assert first[0] != first[1]
    assert [picture.size for picture in pictures.made_pictures(1)] == [(500, 375)]
