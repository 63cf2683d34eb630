"""What Triton's Python models make of requests, with a stand-in for the module that only Triton's processes have."""

import importlib
import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from afd_serve.mode import Mode
from afd_serve.request import Options, RequestError
from afd_serve.telemetry import FAILURES, REQUESTS, UNREAD, Sample

NAME = "afd_serve.servers.triton_adapter"


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    backend = ModuleType("triton_python_backend_utils")
    vars(backend)["get_input_tensor_by_name"] = lambda request, name: request.tensors[name]
    monkeypatch.setitem(sys.modules, backend.__name__, backend)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME)


def request(parameters: str = "", pictures: Any = None) -> Any:
    """A request as the backend hands it over; its parameters are JSON, in which one name may come twice."""
    tensors = {"picture": SimpleNamespace(as_numpy=lambda: pictures)}
    return SimpleNamespace(parameters=lambda: parameters, tensors=tensors)


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ("", Options()),
        ('{"top_k": 1, "timeout": 5}', Options(top_k=1)),
        ('{"top_k": 1, "top_k": "2"}', Options(top_k=1)),
        ('{"top-k": "1", "afd": "off", "Top_K": "2", "AFD": "shadow"}', Options(Mode.OFF, top_k=1)),
    ],
)
def test_options_of_the_body_count_before_those_of_headers(
    adapter: ModuleType, parameters: str, options: Options
) -> None:
    """Triton lists headers last; that it does is for tests/serving/test_triton.py to show."""
    assert adapter.options_of(request(parameters)) == options


@pytest.mark.parametrize("shape", [(0, 1), (0,), (1,), (), (1, 1, 1)])
def test_an_input_of_another_shape_is_the_requests_fault_and_counted_as_such(
    adapter: ModuleType, shape: tuple[int, ...]
) -> None:
    odd = request(pictures=np.full(shape, b"x", dtype=object))
    with pytest.raises(RequestError, match=r"shape \[N, 1\]"):
        adapter.bytes_of(odd, "picture")
    parameters = {"afd": {"string_value": "protect"}, "afd_modes": {"string_value": "protect off"}}
    preparing = adapter.Preparing(None, {"model_config": json.dumps({"parameters": parameters})})
    samples: list[Sample] = []
    with pytest.raises(RequestError):
        preparing.prepare(odd, samples)
    assert samples == [Sample(REQUESTS, 1, (UNREAD,)), Sample(FAILURES, 1, ("bad_request",))]


def test_pictures_are_the_rows_of_their_input(adapter: ModuleType) -> None:
    assert adapter.bytes_of(request(pictures=np.array([[b"a"], [b"b"]], dtype=object)), "picture") == [b"a", b"b"]
