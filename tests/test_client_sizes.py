"""No request is larger than what a server, or a proxy before it, takes, whatever is asked of the pictures."""

from collections.abc import Sequence

import pytest

from afd_serve.packaging.handlers import max_request_bytes

pytest.importorskip("tritonclient.grpc")

from afd_serve.client import Mode, Options
from afd_serve.client.dialects import Question, TorchServeGrpc, TorchServeHttp, TritonGrpc, TritonHttp
from afd_serve.client.sizes import torchserve_fits, triton_fits


def longest(pictures: Sequence[bytes]) -> Question:
    return Question(pictures, Options(mode=Mode.SHADOW, top_k=100), "id 7", 2.5)


def test_a_torchserve_is_sent_no_more_bytes_than_it_takes() -> None:
    largest = bytes((max_request_bytes() - 2048) // 4 * 3)
    halves = [largest[: len(largest) // 2]] * 3
    assert torchserve_fits([largest, b""]) >= 1
    assert torchserve_fits([largest + bytes(2048)]) == 0
    assert torchserve_fits(halves) == 2
    assert torchserve_fits([]) == 0
    for pictures in ([largest], halves[:2]):
        for dialect in (TorchServeHttp("m" * 200), TorchServeGrpc("m" * 200)):
            size = len(dialect.ask(longest(pictures)).body)
            assert max_request_bytes() - 4096 < size <= max_request_bytes()


def test_a_triton_is_sent_no_more_bytes_than_a_proxy_before_it_passes_on() -> None:
    largest = bytes(max_request_bytes() - 2048)
    halves = [largest[: len(largest) // 2]] * 3
    assert triton_fits([largest, b"", bytes(2048)]) == 2
    assert triton_fits([bytes(max_request_bytes()), b""]) == 1, "for Triton itself takes it"
    assert triton_fits(halves) == 2
    for pictures in ([largest], halves[:2]):
        for dialect in (TritonHttp("m" * 200), TritonGrpc("m" * 200)):
            size = len(dialect.ask(longest(pictures)).body)
            assert max_request_bytes() - 4096 < size <= max_request_bytes()
