"""What a real Triton counts, and what Prometheus makes of it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afd_serve.client import Client, Failure, Mode, Options
from afd_serve.client.channels import open_channel
from afd_serve.client.dialects import Question, TritonHttp
from afd_serve.errors import BadAnswerError, RequestRefusedError, ServerUnavailableError
from afd_serve.packaging.triton import package_triton
from afd_serve.pipeline import Pipeline, Prediction
from afd_serve.results import Shadow
from afd_serve.servers import triton
from afd_serve.servers.triton import Triton, TritonPorts
from afd_serve.triton_protocol import ENSEMBLE
from tests.conftest import Run
from tests.monitoring import TRITON_METRICS
from tests.serving import prometheus
from tests.serving.pictures import BAD, GOOD
from tests.serving.scrape import counted, names, settled, total

pytestmark = pytest.mark.serving


def test_metrics_have_the_catalogues_names_and_leave_probes_out(
    triton_server: Triton, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(triton_server.grpc_url) as client:
        pictures, failures = counted(triton_server, "afd_pictures_total"), counted(triton_server, "afd_failures_total")
        client.classify_many([GOOD["sample"], BAD["truncated"]])
        client.classify(BAD["truncated"])
        assert client.healthy(timeout=30)
        assert run("health", "--state-dir", triton_server.state_dir, "--timeout", 30)[0] == 0
        monkeypatch.setattr("afd_serve.client.dialects._options", lambda _: {"top_k": "0"})
        with pytest.raises(RequestRefusedError):
            client.classify(GOOD["sample"])
    assert counted(triton_server, "afd_pictures_total") == pictures + 3
    assert counted(triton_server, "afd_failures_total") == failures + 3
    assert counted(triton_server, "afd_failures_total", ModelName="afd_classify", code="truncated_jpeg") >= 2
    assert counted(triton_server, "afd_inference_seconds_sum") > 0


def test_nobody_hides_pictures_as_probes(triton_server: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    def now() -> dict[str, float]:
        text = settled(triton_server)
        return {name: total(text, f"afd_{name}_total") for name in ("requests", "pictures", "failures", "probes")}

    before = now()
    with Client(triton_server.grpc_url) as client:
        client.probe(timeout=30)
        after = now()
        assert after == before | {"probes": after["probes"]}
        # In the background the supervisor probes as well.
        assert after["probes"] > before["probes"]
        for picture in (GOOD["fine"], BAD["truncated"], BAD["truncated"]):
            monkeypatch.setattr("afd_serve.client.sample_picture", lambda picture=picture: picture)
            client.healthy(timeout=30)
    hidden = {name: value - after[name] for name, value in now().items() if name != "probes"}
    assert hidden == {"requests": 3, "pictures": 3, "failures": 2}


def test_only_what_a_queue_or_a_process_costs_counts_as_turned_away(triton_server: Triton) -> None:
    def turned_away() -> float:
        text = settled(triton_server)
        return sum(total(text, "nv_inference_request_failure", reason=reason) for reason in ("REJECTED", "BACKEND"))

    before = turned_away()
    with Client(triton_server.grpc_url) as client:
        assert isinstance(client.classify(BAD["truncated"]), Failure)
    assert turned_away() == before
    impatient = TritonHttp(ENSEMBLE).ask(Question([GOOD["sample"]], Options(), "", timeout=1e-6))
    channel = open_channel(triton_server.url)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(channel.exchange, impatient, 30) for _ in range(32)]
    channel.close()
    assert any(isinstance(call.exception(), ServerUnavailableError) for call in asked)
    assert turned_away() > before


@pytest.mark.parametrize("shared", ["alone", "among others"])
def test_in_shadow_mode_the_answer_is_the_bare_one_and_the_metrics_tell_the_rest(
    triton_server: Triton, pipeline: Pipeline, shared: str
) -> None:
    pictures = [GOOD["sample"], GOOD["fine"], GOOD["gray"]]
    requests = [pictures] if shared == "among others" else [[picture] for picture in pictures]
    before = settled(triton_server)
    with Client(triton_server.grpc_url) as client:
        answers = [answer for request in requests for answer in client.classify_many(request, Options(Mode.SHADOW))]
    assert answers == pipeline.predict(pictures, afd=Mode.OFF)
    after = settled(triton_server)

    def grown(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    shadows = [
        result.shadow
        for result in pipeline.predict(pictures, afd=Mode.SHADOW)
        if isinstance(result, Prediction) and isinstance(result.shadow, Shadow)
    ]
    assert grown("afd_shadow_total") == len(shadows) == 2, "the gate of the fine picture stays closed"
    assert grown("afd_requests_total", mode="shadow") == len(requests)
    assert grown("afd_shadow_seconds_count") == (1 if shared == "among others" else 2)
    assert grown("afd_shadow_failures_total") == grown("afd_protected_total") == 0
    assert grown("afd_shadow_disagreements_total") == sum(shadow.disagrees for shadow in shadows)
    net = grown("afd_shadow_confidence_change_total", direction="up")
    net -= grown("afd_shadow_confidence_change_total", direction="down")
    assert net == pytest.approx(sum(shadow.confidence_change for shadow in shadows), abs=1e-5)


FAULT = """

def _broken(step, batches):
    if any(len(batch.rgb) > 1 for batch in batches):
        raise ArithmeticError("more than one picture")
    return _sound(step, batches)


_sound, ClassifierStep.classify = ClassifierStep.classify, _broken
"""


@pytest.mark.parametrize(("platform", "model"), [("python", "afd_classifier"), ("python_cpu", "afd_classify")])
def test_faults_of_ours_are_counted_with_their_requests(
    exported: Path, triton_python: Path, tmp_path: Path, platform: str, model: str
) -> None:
    repository = package_triton(exported, tmp_path / "repository", platform=platform)
    with (repository / model / "1" / "model.py").open("a") as code:
        code.write(FAULT)
    server = triton.start(repository, tmp_path / "state", python=triton_python, ports=TritonPorts.free())
    try:
        text = settled(server)
        assert prometheus.catalogue("triton") - names(text) <= {"afd_estimated_quality_total"}, "before any request"
        assert 'afd_failures_total{ModelName="afd_classify",code="internal"}' in text
        assert total(text, "afd_requests_total") == 0
        with Client(server.grpc_url) as client:
            client.classify(GOOD["sample"])
            with pytest.raises(BadAnswerError, match="internal error"):
                client.classify_many([GOOD["sample"], GOOD["fine"]])
        assert counted(server, "afd_failures_total", code="internal") == 1
        assert counted(server, "afd_requests_total", mode="protect") == 2
        assert counted(server, "afd_pictures_total") == 1
    finally:
        Triton.stop(tmp_path / "state")


def test_a_scrape_has_the_catalogues_series(triton_server: Triton) -> None:
    with Client(triton_server.grpc_url) as client:
        for mode in Mode:
            client.classify_many([GOOD["sample"], BAD["truncated"]], Options(mode))
    assert prometheus.catalogue("triton") | TRITON_METRICS <= names(settled(triton_server))


def test_prometheus_reads_the_server_and_answers_the_dashboard(triton_server: Triton, tmp_path: Path) -> None:
    def ask_all() -> None:
        with Client(triton_server.grpc_url) as client:
            for mode in Mode:
                client.classify_many([GOOD["sample"], BAD["truncated"]], Options(mode))

    prometheus.check("triton", triton_server.ports.metrics, tmp_path, ask_all)
