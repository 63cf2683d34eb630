"""Asking a server of our own over HTTP."""

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from afd_serve.errors import ServingError

__all__ = ["Answer", "ask"]


@dataclass(frozen=True)
class Answer:
    """An HTTP answer whose status may be an error's."""

    status: int
    content_type: str
    body: bytes

    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)


def ask(request: urllib.request.Request, timeout: float) -> Answer:
    """Send a request and wait, at most ``timeout`` seconds, for the answer, whatever its status.

    Raises:
        ServingError: There is none.
    """
    # No proxy: the server is on loopback, whatever the environment says about the rest of the world.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        try:
            with opener.open(request, timeout=timeout) as response:
                return _read(response, response.status)
        except urllib.error.HTTPError as error:
            with error:
                return _read(error, error.code)
    # A server that dies while it answers leaves half an answer, which is no error of the system.
    except (OSError, http.client.HTTPException) as error:
        raise ServingError(f"no answer from {request.full_url}: {error}") from error


def _read(response: http.client.HTTPResponse | urllib.error.HTTPError, status: int) -> Answer:
    return Answer(status, response.headers.get("Content-Type", ""), response.read())
