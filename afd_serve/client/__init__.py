"""One client for both servers, over HTTP and gRPC, blocking and for asyncio.

::

    with Client("grpc://127.0.0.1:8001") as client:
        result = client.classify(Path("picture.jpg").read_bytes())

A result is a `Prediction` or, for a picture that cannot be used, a `Failure`; what is wrong with a whole request, with
the way to the server or with the server itself is a `ClientError`. A client that has been closed, even while it was
asking, raises `ClientClosedError`, and so does one in a process that was forked from its own, or in another event loop:
its connections and shared memory are not for two. torch is not needed.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar, Unpack

from afd_serve.client.channels import Reply, open_async_channel, open_channel
from afd_serve.client.conversation import (
    Conversation,
    Exchange,
    Pause,
    Server,
    Settings,
    SettingsKeywords,
    Talk,
    identify,
)
from afd_serve.errors import BadAnswerError, ClientClosedError, ClientError
from afd_serve.mode import Mode
from afd_serve.request import Options
from afd_serve.results import Failure, Prediction
from afd_serve.sample import PROBE_ID, sample_picture

__all__ = ["AsyncClient", "Client", "Failure", "Mode", "Options", "Prediction", "Server", "detect_server"]

Result = Prediction | Failure
T = TypeVar("T")

_HEALTH_TIMEOUT = 5.0
_CLOSED: Final = "the client has been closed, or belongs to another process or event loop; make a new one"


class Client:
    """A connection to one server; several threads of one process may share it.

    Keyword arguments are those of `afd_serve.client.conversation.Settings`.

    Raises:
        ConfigError: An argument has an impossible value.
    """

    def __init__(self, url: str, **settings: Unpack[SettingsKeywords]) -> None:
        chosen = Settings(url, **settings)
        self._talk = Talk(chosen)
        self._channel = open_channel(url, chosen.ca, chosen.token)
        self._process = os.getpid()
        self._closed = False

    def classify(self, picture: bytes, options: Options | None = None, *, timeout: float | None = None) -> Result:
        """Classify one picture; see `classify_many`."""
        return self.classify_many([picture], options, timeout=timeout)[0]

    def classify_many(
        self, pictures: Sequence[bytes], options: Options | None = None, *, timeout: float | None = None
    ) -> list[Result]:
        """Classify pictures.

        Args:
            pictures: The bytes of each, any number: what one request cannot carry becomes several. Whatever else gives
                its memory away will do, such as an array of a file's bytes. A picture that a TorchServe takes in no
                request becomes a `Failure` ``too_large`` and is not sent.
            options: For all of them.
            timeout: Seconds for everything, retries included; the client's own where None.

        Returns:
            One result per picture, in order.

        Raises:
            ServerUnavailableError: The server cannot be reached or has no room, and stayed so.
            TlsError: The server cannot be trusted, or does not speak TLS.
            DeadlineExceededError: The time is over.
            RequestRefusedError: The server does not take the request; its ``failure`` is what the server says of it.
            BadAnswerError: The server does not answer as it should.
            ClientClosedError: The client is closed, or another process's.
            ConfigError: An argument has an impossible value.
            TypeError: A picture is something without bytes, such as a path.
        """
        self._check_open()
        return _carry_out(self._talk.classify(pictures, options or Options(), timeout), self._exchange)

    def explain(
        self, picture: bytes, options: Options | None = None, *, timeout: float | None = None
    ) -> bytes | Failure:
        """Have drawn where a picture has drifted: a PNG; only a TorchServe does that, and only over HTTP.

        Raises:
            ConfigError: This is no TorchServe over HTTP.
            ClientError: As of `classify_many`.
        """
        self._check_open()
        return _carry_out(self._talk.explain(picture, options or Options(), timeout), self._exchange)

    def check_explains(self) -> None:
        """Find out whether `explain` can be asked for; nothing is sent.

        Raises:
            ConfigError: This is no TorchServe over HTTP.
        """
        self._talk.check_explains()

    def probe(self, *, timeout: float = _HEALTH_TIMEOUT) -> Prediction:
        """Let the server classify the sample picture: that a server calls itself ready proves nothing.

        Raises:
            ClientError: It does not, as of `classify_many`.
        """
        self._check_open()
        talk = self._talk.classify([sample_picture()], Options(), timeout, PROBE_ID)
        return _probed(_carry_out(talk, self._exchange)[0])

    def healthy(self, *, timeout: float = _HEALTH_TIMEOUT) -> bool:
        """Whether `probe` finds nothing wrong."""
        try:
            self.probe(timeout=timeout)
        except ClientError:
            return False
        return True

    def close(self) -> None:
        """End all connections and give shared memory back, that of calls under way too; a second time does nothing.

        Those of a process that this one was forked from stay.
        """
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        _carry_out(self._talk.goodbye(), self._ask)
        self._channel.close()

    def _ask(self, step: Exchange) -> Reply:
        return self._channel.exchange(step.call, step.timeout)

    def _check_open(self) -> None:
        """Before each call, which would write into memory that a parent process shares, and before each exchange."""
        if self._closed or os.getpid() != self._process:
            raise ClientClosedError(_CLOSED)

    def _exchange(self, step: Exchange) -> Reply:
        """Ask, unless or until the client is closed, of which each transport would make something else."""
        self._check_open()
        try:
            return self._ask(step)
        except Exception as error:
            if self._closed:
                raise ClientClosedError(_CLOSED) from error
            raise

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """As `Client`, for one event loop: make it while the loop runs."""

    def __init__(self, url: str, **settings: Unpack[SettingsKeywords]) -> None:
        chosen = Settings(url, **settings)
        self._loop = asyncio.get_running_loop()
        self._talk = Talk(chosen)
        self._channel = open_async_channel(url, chosen.ca, chosen.token)
        self._closed = False

    async def classify(self, picture: bytes, options: Options | None = None, *, timeout: float | None = None) -> Result:
        """See `Client.classify`."""
        return (await self.classify_many([picture], options, timeout=timeout))[0]

    async def classify_many(
        self, pictures: Sequence[bytes], options: Options | None = None, *, timeout: float | None = None
    ) -> list[Result]:
        """See `Client.classify_many`."""
        self._check_open()
        return await _carry_out_async(self._talk.classify(pictures, options or Options(), timeout), self._exchange)

    async def explain(
        self, picture: bytes, options: Options | None = None, *, timeout: float | None = None
    ) -> bytes | Failure:
        """See `Client.explain`."""
        self._check_open()
        return await _carry_out_async(self._talk.explain(picture, options or Options(), timeout), self._exchange)

    async def probe(self, *, timeout: float = _HEALTH_TIMEOUT) -> Prediction:
        """See `Client.probe`."""
        self._check_open()
        talk = self._talk.classify([sample_picture()], Options(), timeout, PROBE_ID)
        return _probed((await _carry_out_async(talk, self._exchange))[0])

    async def healthy(self, *, timeout: float = _HEALTH_TIMEOUT) -> bool:
        """See `Client.healthy`."""
        try:
            await self.probe(timeout=timeout)
        except ClientError:
            return False
        return True

    async def close(self) -> None:
        """See `Client.close`."""
        if self._closed:
            return
        self._closed = True
        await _carry_out_async(self._talk.goodbye(), self._ask)
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()

    async def _ask(self, step: Exchange) -> Reply:
        return await self._channel.exchange(step.call, step.timeout)

    def _check_open(self) -> None:
        """As `Client._check_open`."""
        if self._closed or asyncio.get_running_loop() is not self._loop:
            raise ClientClosedError(_CLOSED)

    async def _exchange(self, step: Exchange) -> Reply:
        """As `Client._exchange`."""
        self._check_open()
        try:
            return await self._ask(step)
        except (Exception, asyncio.CancelledError) as error:
            # Over gRPC an end of the channel looks as if the waiting task had been cancelled.
            if self._closed and not _is_cancelled():
                raise ClientClosedError(_CLOSED) from error
            raise


def _probed(result: Result) -> Prediction:
    if isinstance(result, Failure):
        raise BadAnswerError(f"the sample picture was answered {result.code}: {result.reason}")
    return result


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _carry_out_async(conversation: Conversation[T], exchange: Callable[[Exchange], Awaitable[Reply]]) -> T:
    try:
        step = next(conversation)
        while True:
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                step = conversation.send(None)
                continue
            try:
                reply = await exchange(step)
            except ClientError as error:
                step = conversation.throw(error)
            else:
                step = conversation.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        conversation.close()


def _carry_out(conversation: Conversation[T], exchange: Callable[[Exchange], Reply]) -> T:
    try:
        step = next(conversation)
        while True:
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                step = conversation.send(None)
                continue
            try:
                reply = exchange(step)
            except ClientError as error:
                step = conversation.throw(error)
            else:
                step = conversation.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        conversation.close()


def detect_server(
    url: str, *, ca: Path | None = None, token: str | None = None, timeout: float = _HEALTH_TIMEOUT
) -> Server:
    """Which of the two servers answers at a URL; ``ca`` and ``token`` as of `open_channel`.

    Raises:
        ConfigError: The URL has another form.
        ServerUnavailableError: Nobody answers.
        TlsError: The server cannot be trusted, or does not speak TLS.
        DeadlineExceededError: Nobody answers in time.
    """
    channel = open_channel(url, ca, token)
    try:
        question = identify(url, timeout)
        return "triton" if channel.exchange(question.call, question.timeout).status == 200 else "torchserve"
    finally:
        channel.close()
