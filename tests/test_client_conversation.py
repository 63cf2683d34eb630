"""What the client says and when: retries, deadlines, shared memory; nothing is sent."""

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from afd_serve.errors import (
    ClientClosedError,
    ClientError,
    ConfigError,
    DeadlineExceededError,
    RequestRefusedError,
    ServerUnavailableError,
)
from afd_serve.packaging.handlers import max_request_bytes
from afd_serve.request import CROWDED_OUT, MAX_PICTURES, MAX_TOP_K
from afd_serve.results import Failure

service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")

from afd_serve.client import Options  # noqa: E402
from afd_serve.client.channels import Reply  # noqa: E402
from afd_serve.client.conversation import Conversation, Exchange, Pause, Settings, T, Talk  # noqa: E402
from afd_serve.client.dialects import serialize  # noqa: E402
from afd_serve.client.regions import RegionPool  # noqa: E402
from tests.client_answers import CLOCK, CUT, DRAWING, Result, answers, wire  # noqa: E402

Script = list[Reply | ClientError]


def play(talk: Talk, pictures: Sequence[bytes], script: Script, timeout: float = 5.0) -> tuple[list[Result], list[Any]]:
    """Have pictures classified as of `carry_out`; the results and all steps."""
    return carry_out(talk.classify(pictures, Options(), timeout), script)


def carry_out(conversation: Conversation[T], script: Script) -> tuple[T, list[Any]]:
    """Carry a conversation out with replies from a script, without waiting; what it returns and all steps."""
    steps: list[Any] = []
    try:
        step = next(conversation)
        while True:
            steps.append(step)
            if isinstance(step, Pause):
                step = conversation.send(None)
            elif isinstance(answer := script.pop(0), ClientError):
                step = conversation.throw(answer)
            else:
                step = conversation.send(answer)
    except StopIteration as end:
        assert not script
        return end.value, steps


BUSY = ServerUnavailableError("busy")


def test_a_request_has_the_callers_id_or_one_of_its_own() -> None:
    talk = Talk(Settings("http://x:1", server="torchserve"))

    def request_id(given: str) -> str:
        step = next(talk.classify([b"x"], Options(), 1, given))
        assert isinstance(step, Exchange)
        return step.call.headers["X-Request-Id"]

    assert request_id("mine") == "mine"
    assert len({request_id(""), request_id(""), ""}) == 3


def test_an_unavailable_server_is_asked_again_after_longer_and_longer_pauses() -> None:
    talk = Talk(Settings("http://x:1", attempts=4))
    results, steps = play(talk, [b"x"], [BUSY, BUSY, BUSY, answers(CLOCK)])
    assert results == [CLOCK]
    pauses = [step.seconds for step in steps if isinstance(step, Pause)]
    assert len(pauses) == 3
    assert all(0.5 <= pause / (0.05 * 2**index) <= 1.5 for index, pause in enumerate(pauses))


def test_retries_end_with_the_attempts_and_with_the_deadline() -> None:
    with pytest.raises(ServerUnavailableError):
        play(Talk(Settings("http://x:1", attempts=2)), [b"x"], [BUSY, BUSY])
    with pytest.raises(ServerUnavailableError):
        play(Talk(Settings("http://x:1", attempts=99)), [b"x"], [BUSY], timeout=0.02)
    with pytest.raises(DeadlineExceededError):
        play(Talk(Settings("http://x:1")), [b"x"], [DeadlineExceededError("late")])
    with pytest.raises(RequestRefusedError):
        play(Talk(Settings("http://x:1")), [b"x"], [Reply(404, b'{"error": "no model"}')])


def test_a_request_that_two_workers_died_of_is_not_sent_again() -> None:
    talk = Talk(Settings("http://x:1", server="torchserve"))
    died, answered = Reply(507, b'{"message": "Worker died."}'), Reply(200, json.dumps([wire(CLOCK)]).encode())
    assert play(talk, [b"x"], [died, answered])[0] == [CLOCK]
    assert play(talk, [b"x"], [BUSY, died, BUSY, answered])[0] == [CLOCK]
    with pytest.raises(ServerUnavailableError, match="Worker died"):
        play(talk, [b"x"], [died, BUSY, died])
    assert play(talk, [b"x"], [answered])[0] == [CLOCK]


def test_many_pictures_become_several_requests_with_one_deadline() -> None:
    pictures = [b"%d" % index for index in range(MAX_PICTURES + 2)]
    results, steps = play(
        Talk(Settings("http://x:1")), pictures, [answers(*[CLOCK] * MAX_PICTURES), answers(CUT, CLOCK)]
    )
    assert results == [CLOCK] * MAX_PICTURES + [CUT, CLOCK]
    first, second = steps
    assert second.timeout <= first.timeout <= 5
    assert play(Talk(Settings("http://x:1")), [], []) == ([], [])


CROWDED = Failure(CROWDED_OUT, "too many pixels beside the others")


def test_pictures_that_are_read_when_asked_for_are_not_all_held_at_once() -> None:
    read: list[int] = []

    class Files(Sequence[bytes]):
        def __len__(self) -> int:
            return 3 * MAX_PICTURES

        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return b"%d" % index

    conversation = Talk(Settings("http://x:1")).classify(Files(), Options(), 5)
    next(conversation)
    assert read == list(range(MAX_PICTURES))
    conversation.send(answers(*[CROWDED] * 2, *[CLOCK] * (MAX_PICTURES - 2)))
    assert read == list(range(2 * MAX_PICTURES - 2)), "those that are asked for again are still at hand"


def test_pictures_that_a_request_has_no_room_for_are_asked_for_again_without_the_others() -> None:
    talk = Talk(Settings("http://x:1"))
    script = [answers(CLOCK, CROWDED, CUT, CROWDED), answers(CLOCK, CROWDED), answers(CUT)]
    results, steps = play(talk, [b"a", b"b", b"c", b"d"], script)
    assert results == [CLOCK, CLOCK, CUT, CUT]
    for step, sent in zip(steps, ([b"a", b"b", b"c", b"d"], [b"b", b"d"], [b"d"]), strict=True):
        assert step.call.body.endswith(b"}" + serialize(sent))


def test_a_server_that_has_no_room_for_any_picture_is_not_asked_for_ever() -> None:
    talk = Talk(Settings("http://x:1"))
    assert play(talk, [b"a", b"b"], [answers(CROWDED, CROWDED)])[0] == [CROWDED, CROWDED]


def test_a_torchserve_gets_requests_of_no_more_bytes_than_it_takes_and_no_picture_that_is_larger() -> None:
    talk = Talk(Settings("http://x:1", server="torchserve"))
    quarter, huge = bytes(max_request_bytes() // 4), bytes(max_request_bytes())  # base64 makes a third of a quarter

    def answered(*results: Result) -> Reply:
        return Reply(200, json.dumps([wire(result) for result in results]).encode())

    script: Script = [answered(CLOCK), answered(CUT, CLOCK), answered(CUT)]
    results, steps = play(talk, [quarter, huge, quarter, quarter, quarter], script)
    refused = results.pop(1)
    assert results == [CLOCK, CUT, CLOCK, CUT]
    assert isinstance(refused, Failure)
    assert refused.code == "too_large"
    assert all(len(step.call.body) <= max_request_bytes() for step in steps)
    with pytest.raises(StopIteration) as end:
        next(talk.explain(huge, Options(), 1))
    assert end.value.value == refused


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_triton_gets_requests_of_no_more_bytes_than_a_proxy_before_it_passes_on(scheme: str) -> None:
    third = bytes(max_request_bytes() // 3 - 512)
    script = [triton_answers(scheme, CLOCK, CUT, CLOCK), triton_answers(scheme, CUT)]
    results, steps = play(Talk(Settings(f"{scheme}://x:1")), [third] * 4, script)
    assert results == [CLOCK, CUT, CLOCK, CUT]
    assert all(len(step.call.body) <= max_request_bytes() for step in steps)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_triton_gets_a_picture_that_is_larger_in_a_request_of_its_own(scheme: str) -> None:
    huge, script = bytes(max_request_bytes()), [triton_answers(scheme, result) for result in (CUT, CLOCK, CUT)]
    results, steps = play(Talk(Settings(f"{scheme}://x:1")), [b"x", huge, b"x"], script)
    assert results == [CUT, CLOCK, CUT]
    assert len(steps[1].call.body) > max_request_bytes()


def triton_answers(scheme: str, *results: Result) -> Reply:
    if scheme == "http":
        return answers(*results)
    texts = serialize([json.dumps(wire(result)).encode() for result in results])
    return Reply(200, service_pb2.ModelInferResponse(raw_output_contents=[texts]).SerializeToString())


def test_shared_memory_holds_pictures_of_any_size() -> None:
    talk = Talk(Settings("http://x:1", shared_memory=True))
    done, third = Reply(200, b""), bytes(max_request_bytes() // 3)
    _, steps = play(talk, [third] * 4, [done, answers(*[CLOCK] * 4)])
    assert targets(steps) == ["register", "infer"]
    carry_out(talk.goodbye(), [done])


def test_shared_memory_is_registered_once_and_its_name_forgotten() -> None:
    talk = Talk(Settings("http://x:1", shared_memory=True))
    done = Reply(200, b"")
    _, (register, ask) = play(talk, [b"x" * 1000], [done, answers(CLOCK)])
    assert "systemsharedmemory" in register.call.target
    assert len(ask.call.body) < 1000
    assert len(play(talk, [b"y"], [answers(CLOCK)])[1]) == 1
    lost = Reply(400, b'{"error": "Unable to find shared memory region"}')
    assert play(talk, [b"y"], [lost, done, answers(CUT)])[0] == [CUT]
    assert targets(carry_out(talk.goodbye(), [done])[1]) == ["unregister"]


def targets(steps: Iterable[Any]) -> list[str]:
    """Of each call: to register, to infer or to unregister."""
    return [step.call.target.rsplit("/", 1)[1] for step in steps if isinstance(step, Exchange)]


def test_shared_memory_that_a_busy_or_refusing_server_does_not_read_is_used_again() -> None:
    talk = Talk(Settings("http://x:1", shared_memory=True))
    _, steps = play(talk, [b"x"], [Reply(200, b""), BUSY, BUSY, answers(CLOCK)])
    assert targets(steps) == ["register", "infer", "infer", "infer"]
    with pytest.raises(RequestRefusedError):
        play(talk, [b"x"], [Reply(400, b'{"error": "bad_option: top_k is a whole number"}')])
    assert targets(play(talk, [b"x"], [answers(CLOCK)])[1]) == ["infer"]
    assert targets(carry_out(talk.goodbye(), [Reply(200, b"")])[1]) == ["unregister"]


def test_shared_memory_that_the_server_may_still_read_is_given_back_at_the_end_and_not_used_before() -> None:
    talk = Talk(Settings("http://x:1", shared_memory=True))
    with pytest.raises(DeadlineExceededError):
        play(talk, [b"x"], [Reply(200, b""), DeadlineExceededError("late")])
    cancelled = talk.classify([b"x"], Options(), 5)
    assert targets([next(cancelled), cancelled.send(Reply(200, b""))]) == ["register", "infer"]
    cancelled.close()
    assert targets(play(talk, [b"x"], [Reply(200, b""), answers(CLOCK)])[1]) == ["register", "infer"]
    _, steps = carry_out(talk.goodbye(), [Reply(200, b"")] * 3)
    assert targets(steps) == ["unregister"] * 3
    assert len({step.call.target for step in steps}) == 3
    assert carry_out(talk.goodbye(), [])[1] == []


def test_shared_memory_that_the_server_still_reads_at_the_end_is_given_back_when_it_has_read_it() -> None:
    words = "Cannot unregister shared memory region 'x', it is currently in use."
    for url, reads in (
        ("http://x:1", Reply(400, json.dumps({"error": words}).encode())),
        ("grpc://x:1", Reply(500, b"", words)),
    ):
        talk = Talk(Settings(url, shared_memory=True))
        with pytest.raises(DeadlineExceededError):
            play(talk, [b"x"], [Reply(200, b""), DeadlineExceededError("late")])
        _, (asked, pause, again) = carry_out(talk.goodbye(), [reads, Reply(200, b"")])
        assert isinstance(pause, Pause)
        assert asked.call == again.call


def test_shared_memory_that_the_server_does_not_know_is_not_given_back() -> None:
    talk = Talk(Settings("http://x:1", shared_memory=True, attempts=1))
    lost = Reply(400, b'{"error": "Unable to find shared memory region"}')
    for script in ([Reply(400, b"no")], [BUSY], [Reply(200, b""), lost]):
        with pytest.raises(ClientError):
            play(talk, [b"x"], [*script])
    assert carry_out(talk.goodbye(), [])[1] == []


def test_shared_memory_of_before_a_restart_costs_no_attempts_however_much_of_it_there_is() -> None:
    talk = Talk(Settings("http://x:1", shared_memory=True, attempts=1))
    together = [talk.classify([b"x"], Options(), 5) for _ in range(4)]
    for conversation in together:
        assert targets([next(conversation), conversation.send(Reply(200, b""))]) == ["register", "infer"]
    for conversation in together:
        with pytest.raises(StopIteration):
            conversation.send(answers(CLOCK))
    lost = Reply(400, b'{"error": "Unable to find shared memory region"}')
    results, steps = play(talk, [b"x"], [*[lost] * 4, Reply(200, b""), answers(CUT)])
    assert results == [CUT]
    assert targets(steps) == [*["infer"] * 4, "register", "infer"]
    assert targets(carry_out(talk.goodbye(), [Reply(200, b"")])[1]) == ["unregister"]


def test_regions_are_shared_by_no_two_calls() -> None:
    pool = RegionPool()
    one, other = pool.take(10), pool.take(10)
    assert one is not other
    pool.give_back(one)
    assert pool.take(10) is one
    larger = pool.take(one.size + 1)
    assert larger.size > one.size
    for region in (one, other, larger):
        pool.forget(region)
    assert pool.drain() == []


def test_no_region_stays_with_a_pool_that_has_been_drained() -> None:
    pool = RegionPool()
    free, lost, given_back, forgotten = (pool.take(10) for _ in range(4))
    pool.give_back(free)
    pool.lose(lost)
    assert set(pool.drain()) == {free, lost, given_back, forgotten}
    assert [region.closed for region in (free, lost, given_back, forgotten)] == [True, True, False, False]
    pool.give_back(given_back)
    pool.lose(forgotten)
    assert given_back.closed
    assert forgotten.closed
    assert pool.drain() == []
    with pytest.raises(ClientClosedError):
        pool.take(10)


def begin(talk: Talk, *replies: Reply) -> tuple[Conversation[list[Result]], list[str]]:
    """Begin to classify; the conversation, and the calls that came before and after the replies."""
    asking = talk.classify([b"x"], Options(), 5)
    return asking, targets([next(asking), *(asking.send(reply) for reply in replies)])


def test_shared_memory_of_a_call_under_way_is_given_back_at_the_end() -> None:
    done = Reply(200, b"")
    for end in ("answer", "closing"):
        talk = Talk(Settings("http://x:1", shared_memory=True))
        asking, calls = begin(talk, done)
        assert calls == ["register", "infer"]
        goodbye = talk.goodbye()
        assert targets([next(goodbye)]) == ["unregister"]
        if end == "answer":
            with pytest.raises(StopIteration) as answered:
                asking.send(answers(CLOCK))
            assert answered.value.value == [CLOCK]
        else:
            with pytest.raises(ClientClosedError):
                asking.throw(ClientClosedError("closed"))
        with pytest.raises(StopIteration):
            goodbye.send(done)
        assert carry_out(talk.goodbye(), [])[1] == []


def test_shared_memory_that_a_call_is_making_known_is_given_back_when_it_is_known() -> None:
    talk, done = Talk(Settings("http://x:1", shared_memory=True)), Reply(200, b"")
    asking, calls = begin(talk)
    assert calls == ["register"]
    goodbye = talk.goodbye()
    assert isinstance(next(goodbye), Pause)
    assert isinstance(goodbye.send(None), Pause)
    assert targets([asking.send(done)]) == ["infer"]
    assert targets([goodbye.send(None)]) == ["unregister"]


def test_the_end_does_not_wait_for_a_call_that_could_not_make_its_shared_memory_known() -> None:
    talk = Talk(Settings("http://x:1", shared_memory=True))
    asking, _ = begin(talk)
    goodbye = talk.goodbye()
    assert isinstance(next(goodbye), Pause)
    with pytest.raises(ClientClosedError):
        asking.throw(ClientClosedError("closed"))
    assert not isinstance(goodbye.send(None), Pause)


def test_a_call_that_goes_on_after_the_end_takes_no_more_shared_memory() -> None:
    talk, done = Talk(Settings("http://x:1", shared_memory=True)), Reply(200, b"")
    asking = talk.classify([b"x"] * (MAX_PICTURES + 1), Options(), 5)
    assert targets([next(asking), asking.send(done)]) == ["register", "infer"]
    next(talk.goodbye())
    with pytest.raises(ClientClosedError):
        asking.send(answers(*[CLOCK] * MAX_PICTURES))


@pytest.mark.parametrize("server", ["triton", "torchserve"])
def test_whatever_gives_its_memory_away_is_a_picture(server: Literal["triton", "torchserve"]) -> None:
    content = bytes(range(256)) * 2
    array = np.frombuffer(content, np.uint8)
    views = [memoryview(content).cast("H"), np.stack([array, array])[:, 1], np.frombuffer(content, "<u4")]
    views += [bytearray(content), array, array.reshape(2, -1)]
    for url in ("http://x:1", "grpc://x:1"):
        for view in views:
            step = next(Talk(Settings(url, server=server)).classify([view], Options(), 5))
            octets = bytes(memoryview(view))
            assert isinstance(step, Exchange)
            assert (serialize([octets]) if server == "triton" else base64.b64encode(octets) + b'"') in step.call.body


@pytest.mark.parametrize("picture", [Path("picture.jpg"), "picture.jpg", None, 3])
def test_what_has_no_bytes_is_no_picture(picture: Any) -> None:
    talk = Talk(Settings("http://x:1", server="torchserve"))
    for ask in (
        lambda: next(talk.classify([b"x", picture], Options(), 5)),
        lambda: talk.explain(picture, Options(), 5),
    ):
        with pytest.raises(TypeError, match=rf"read_bytes\(\), and no {type(picture).__name__}$"):
            ask()


def test_no_server_is_asked_for_more_classes_than_any_names() -> None:
    talk = Talk(Settings("http://x:1", server="torchserve"))
    options = Options(top_k=MAX_TOP_K + 1)
    for ask in (lambda: next(talk.classify([b"x"], options, 5)), lambda: talk.explain(b"x", options, 5)):
        with pytest.raises(ConfigError, match=f"at most {MAX_TOP_K} classes"):
            ask()


def test_explanations_are_for_torchserve_over_http() -> None:
    for settings in (Settings("http://x:1"), Settings("grpc://x:1"), Settings("grpc://x:1", server="torchserve")):
        with pytest.raises(ConfigError, match="TorchServe over HTTP"):
            Talk(settings).explain(b"x", Options(), 1)
    conversation = Talk(Settings("http://x:1", server="torchserve")).explain(b"x", Options(), 1)
    assert isinstance(next(conversation), Exchange)
    assert isinstance(conversation.throw(BUSY), Pause), "it is asked again, as any request is"
    assert isinstance(conversation.send(None), Exchange)
    with pytest.raises(StopIteration) as end:
        conversation.send(Reply(200, DRAWING))
    assert end.value.value == DRAWING
