"""What a client says and when, apart from how it waits: deadlines, retries, shared memory.

A conversation is a generator. It yields a call or a pause and gets the reply, or the error that came instead; what it
returns is the result. `Client` and `AsyncClient` only differ in how they carry the steps out.
"""

import math
import random
import re
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, TypedDict, TypeVar

from afd_serve.client.channels import Address, Call, Reply
from afd_serve.client.dialects import (
    Dialect,
    LostRegionError,
    Question,
    TorchServeGrpc,
    TorchServeHttp,
    TritonGrpc,
    TritonHttp,
    WorkerDiedError,
    is_in_use,
    serialize,
)
from afd_serve.client.regions import Region, RegionPool
from afd_serve.client.sizes import torchserve_fits, triton_fits
from afd_serve.errors import (
    ClientError,
    ConfigError,
    DeadlineExceededError,
    PictureTooLargeError,
    RequestRefusedError,
    ServerUnavailableError,
)
from afd_serve.request import CROWDED_OUT, MAX_PICTURES, MAX_TOP_K, Options
from afd_serve.results import Failure, Prediction
from afd_serve.triton_protocol import ENSEMBLE

__all__ = [
    "Conversation",
    "Exchange",
    "Pause",
    "Server",
    "Settings",
    "SettingsKeywords",
    "Talk",
    "identify",
]

Server: TypeAlias = Literal["triton", "torchserve"]

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_TOKEN: Final = re.compile(r"[!-~]+")
_GOODBYE: Final = 5.0
"""Seconds to give all shared memory back."""

_DEATHS: Final = 2
"""After so many workers died of one request, or beside it, it is not sent again: it may be its pictures' doing."""


@dataclass(frozen=True)
class Exchange:
    """Send this and wait at most ``timeout`` seconds for the reply."""

    call: Call
    timeout: float


@dataclass(frozen=True)
class Pause:
    """Wait."""

    seconds: float


T = TypeVar("T")
Conversation: TypeAlias = Generator[Exchange | Pause, Reply | None, T]
_Results: TypeAlias = list[Prediction | Failure]


@dataclass(frozen=True)
class Settings:
    """How to talk to a server.

    Attributes:
        url: ``http://HOST:PORT`` or ``grpc://HOST:PORT``; in TLS ``https`` or ``grpcs``. No proxy that the environment
            names is asked.
        server: ``triton`` or ``torchserve``.
        model: The model's name; the usual one where None.
        token: TorchServe's key for inference, or that of a proxy before either server.
        ca: In TLS, a file of certificates that vouch for the server, see `open_channel`.
        timeout: Seconds for a request with all its retries.
        attempts: How often to ask a server that is unavailable.
        shared_memory: Whether pictures go to Triton through shared memory: the server must run on this machine, for the
            same user, and have been started with ``--shared-memory``. What a call that timed out or was cancelled has
            there is the server's until `Client.close`.
    """

    url: str
    server: Server = "triton"
    model: str | None = None
    token: str | None = None
    ca: Path | None = None
    timeout: float = 30.0
    attempts: int = 5
    shared_memory: bool = False

    def __post_init__(self) -> None:
        if self.server not in ("triton", "torchserve"):
            raise ConfigError(f"the server is triton or torchserve, not {self.server!r}")
        if not 0 < self.timeout < math.inf or self.attempts < 1:
            raise ConfigError("the timeout must be positive and finite, and there must be at least one attempt")
        if self.token and not _TOKEN.fullmatch(self.token):
            raise ConfigError("the token has characters that no header carries; does it end with a line's end?")
        if self.shared_memory and self.server != "triton":
            raise ConfigError("shared memory is for Triton")


class SettingsKeywords(TypedDict, total=False):
    """The fields of `Settings` beside the URL, as keyword arguments that a type checker knows by name."""

    server: Server
    model: str | None
    token: str | None
    ca: Path | None
    timeout: float
    attempts: int
    shared_memory: bool


class Talk:
    """The conversations with one server; for several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._triton: TritonHttp | TritonGrpc | None = None
        self._dialect = self._choose()
        self._regions = RegionPool()

    def _choose(self) -> Dialect:
        over_grpc = Address.of(self._settings.url).grpc
        if self._settings.server == "triton":
            model = self._settings.model or ENSEMBLE
            self._triton = TritonGrpc(model) if over_grpc else TritonHttp(model)
            return self._triton
        model = self._settings.model or "afd"
        return (TorchServeGrpc if over_grpc else TorchServeHttp)(model)

    def classify(
        self, pictures: Sequence[bytes], options: Options, timeout: float | None, request_id: str = ""
    ) -> Conversation[_Results]:
        """Classify any number of pictures, in requests as large as the server takes; one deadline for all of them.

        Raises:
            ConfigError: No server takes these options.
            TypeError: A picture has no bytes; those of earlier requests have been answered then.
        """
        deadline = self._deadline(timeout)
        _check(options)
        held: dict[int, bytes] = {}
        results: dict[int, Prediction | Failure] = {}
        waiting = list(range(len(pictures)))
        while waiting:
            # As many as a request may have, and each once: the sequence may read its pictures when asked for them.
            window = waiting[:MAX_PICTURES]
            held = {index: held[index] if index in held else _bytes_of(pictures[index]) for index in window}
            part = self._first_request(list(held.values()))
            if not part:
                first = waiting.pop(0)
                results[first] = _too_large(held[first])
                continue
            asked, waiting = waiting[: len(part)], waiting[len(part) :]
            answers = yield from self._persist(self._ask, part, options, deadline, request_id or uuid.uuid4().hex)
            results.update(zip(asked, answers, strict=True))
            crowded_out = [index for index in asked if _is_crowded_out(results[index])]
            if len(crowded_out) < len(asked):  # a server that answers none of them would not do so the next time
                waiting = crowded_out + waiting
        return [results[index] for index in range(len(pictures))]

    def _first_request(self, pictures: Sequence[bytes]) -> Sequence[bytes]:
        """The first of the pictures, as many as one request has room for; none where there is no room for one."""
        if not self._triton:
            return pictures[: torchserve_fits(pictures)]
        # What goes through shared memory is in no body.
        return pictures if self._settings.shared_memory else pictures[: triton_fits(pictures)]

    def explain(self, picture: bytes, options: Options, timeout: float | None) -> Conversation[bytes | Failure]:
        """Have the drift map of one picture drawn.

        Raises:
            ConfigError: This server gives no explanations, or not this way, or no server takes these options.
            TypeError: The picture has no bytes.
        """
        dialect = self.check_explains()
        _check(options)
        sent = _bytes_of(picture)

        def ask(question: Question, deadline: float) -> Conversation[bytes | Failure]:
            if not self._first_request(question.pictures):
                return _too_large(sent)
            reply = yield from _exchange(dialect.ask_why(question), deadline)
            return dialect.read_drawing(reply)

        return self._persist(ask, [sent], options, self._deadline(timeout), uuid.uuid4().hex)

    def check_explains(self) -> TorchServeHttp:
        """The dialect in which explanations are asked for.

        Raises:
            ConfigError: This server gives no explanations, or not this way.
        """
        if not isinstance(self._dialect, TorchServeHttp):
            raise ConfigError("explanations are given by TorchServe over HTTP, not by Triton and not over gRPC")
        return self._dialect

    def _deadline(self, timeout: float | None) -> float:
        seconds = self._settings.timeout if timeout is None else timeout
        if not math.isfinite(seconds):
            raise ConfigError(f"a timeout is a finite number of seconds, not {seconds}")
        return time.monotonic() + seconds

    def _persist(
        self,
        ask: Callable[[Question, float], Conversation[T]],
        pictures: Sequence[bytes],
        options: Options,
        deadline: float,
        request_id: str,
    ) -> Conversation[T]:
        """One request, again and again while the server is unavailable; asking twice harms nobody."""
        deaths = 0
        for attempt in range(1, self._settings.attempts + 1):
            try:
                return (yield from ask(Question(pictures, options, request_id, _left(deadline)), deadline))
            except ServerUnavailableError as error:
                deaths += isinstance(error, WorkerDiedError)
                # Random, so that clients that were turned away together do not come back together.
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.5)
                last = attempt == self._settings.attempts or deaths == _DEATHS
                if last or pause > deadline - time.monotonic():
                    raise
                yield Pause(pause)
            except LostRegionError:
                if attempt == self._settings.attempts:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, question: Question, deadline: float) -> Conversation[_Results]:
        if self._settings.shared_memory and self._triton:
            return (yield from self._through_memory(self._triton, question, deadline))
        reply = yield from _exchange(self._dialect.ask(question), deadline)
        return self._dialect.read(reply, len(question.pictures))

    def _through_memory(
        self, triton: TritonHttp | TritonGrpc, question: Question, deadline: float
    ) -> Conversation[_Results]:
        data = serialize(question.pictures)
        while True:
            region = self._regions.take(len(data))
            known = region.registered
            try:
                return (yield from self._through_region(triton, region, question, data, deadline))
            except LostRegionError:
                # A server that was started anew knows none of the older ones; the next may be one of them.
                if not known:
                    raise

    def _through_region(
        self, triton: TritonHttp | TritonGrpc, region: Region, question: Question, data: bytes, deadline: float
    ) -> Conversation[_Results]:
        try:
            if not region.registered:
                yield from self._register(triton, region, deadline)
            region.write(data)
            reply = yield from _exchange(triton.ask_in_region(question, region, len(data)), deadline)
            results = triton.read(reply, len(question.pictures))
        except BaseException as error:
            self._put_away(region, error)
            raise
        self._regions.give_back(region)
        return results

    def _put_away(self, region: Region, error: BaseException) -> None:
        """What becomes of a region whose call failed: it depends on what the server still does with it."""
        if not isinstance(error, ClientError) or isinstance(error, DeadlineExceededError):
            self._regions.lose(region)  # nobody waits any more for a server that may still read it
        elif isinstance(error, LostRegionError) or not region.registered:
            self._regions.forget(region)
        else:  # the server has answered, has turned the call away or is gone: it reads nothing
            self._regions.give_back(region)

    def _register(self, triton: TritonHttp | TritonGrpc, region: Region, deadline: float) -> Conversation[None]:
        reply = yield from _exchange(triton.register(region), deadline)
        if reply.status != 200:
            raise RequestRefusedError(f"the server does not take shared memory: {reply.words}")
        region.registered = True
        region.forget_name()

    def goodbye(self) -> Conversation[None]:
        """Give the shared memory back."""
        deadline = time.monotonic() + _GOODBYE
        for region in self._regions.drain():
            if self._triton:
                with suppress(ClientError):  # a server that is gone has given it back itself
                    yield from _unregister(self._triton, region, deadline)


def _unregister(triton: TritonHttp | TritonGrpc, region: Region, deadline: float) -> Conversation[None]:
    """Have the server unmap a region, which it does not do while it reads it, nor before a call has made it known."""
    while not region.registered and not region.closed:
        _left(deadline)
        yield Pause(_FIRST_PAUSE)
    while is_in_use((yield from _exchange(triton.unregister(region), deadline))):
        yield Pause(_FIRST_PAUSE)


def _check(options: Options) -> None:
    if options.top_k > MAX_TOP_K:
        raise ConfigError(f"servers name at most {MAX_TOP_K} classes, not {options.top_k}")


def _bytes_of(picture: object) -> bytes:
    """A picture's bytes: other memory would be measured in items, and be added to bytes in ways of its own."""
    if isinstance(picture, bytes):
        return picture
    try:
        return memoryview(picture).tobytes()  # type: ignore[arg-type]
    except TypeError:
        kind = type(picture).__name__
        raise TypeError(f"a picture is the bytes of a file, such as path.read_bytes(), and no {kind}") from None


def _is_crowded_out(result: Prediction | Failure) -> bool:
    return isinstance(result, Failure) and result.code == CROWDED_OUT


def _too_large(picture: bytes) -> Failure:
    return Failure(PictureTooLargeError.code, f"{len(picture)} bytes are more than a request to this server carries")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceededError("there is no time left to ask the server")
    return left


def _exchange(call: Call, deadline: float) -> Conversation[Reply]:
    reply = yield Exchange(call, _left(deadline))
    if reply is None:
        raise AssertionError("an exchange ends with a reply or an error")
    return reply


def identify(url: str, timeout: float) -> Exchange:
    """The question that only Triton understands."""
    target = "/inference.GRPCInferenceService/ServerMetadata" if Address.of(url).grpc else "/v2"
    return Exchange(Call(target), timeout)
