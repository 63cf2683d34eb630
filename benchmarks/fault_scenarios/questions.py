"""Requests, good and bad, with the answers that they must get: those of `Pipeline` for the same bytes."""

import io
import json
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from http_load import prediction_request
from pictures import made_jpegs
from PIL import Image

from afd_serve.pipeline import Pipeline, Prediction
from afd_serve.response import ModelInfo, failure_to_dict, prediction_to_dict, status_of
from afd_serve.sample import sample_picture
from afd_serve.servers.torchserve import TorchServe

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bombs import BOMBS

from tests.serving.pictures import BAD, GOOD

__all__ = ["Endpoint", "Question", "endpoint_of", "large_picture", "question"]

_PICTURE = "application/octet-stream"
# Header lines, content type, body, and the status and code they must get. The frontend refuses some by itself, in a
# form of its own: there only the status is compared.
_MALFORMED = {
    "a header of 20,000 bytes": (f"x-long: {'x' * 20_000}\r\n", _PICTURE, sample_picture(), 400, None),
    "3,000 headers": ("".join(f"x-{n}: 1\r\n" for n in range(3_000)), _PICTURE, sample_picture(), 400, None),
    "a wrong token": ("Authorization: Bearer wrong\r\n", _PICTURE, sample_picture(), 400, None),
    "no number of classes": ("top_k: 0\r\n", _PICTURE, sample_picture(), 400, "bad_option"),
    "an option of 7,000 bytes": (f"afd: {'x' * 7_000}\r\n", _PICTURE, sample_picture(), 400, "bad_option"),
    "broken JSON": ("", "application/json", b"{", 400, "bad_request"),
    "a form without parts": ("", "multipart/form-data; boundary=none", sample_picture(), 400, "bad_request"),
}


@dataclass(frozen=True)
class Question:
    """One request and its only right answer.

    Attributes:
        name: For reports.
        request: All of its bytes.
        status: What it must be answered with.
        answer: What the body must say: a prediction, or a failure's code; None where the frontend
            answers and only the status counts.
    """

    name: str
    request: bytes
    status: int
    answer: dict[str, object] | str | None

    def right(self, status: int, body: bytes) -> bool:
        """Whether an answer is this question's, bit for bit for a prediction."""
        if status != self.status or self.answer is None:
            return status == self.status
        said = json.loads(body)
        return bool(said["error"]["code"] == self.answer if "error" in said else said == self.answer)


@dataclass
class Endpoint:
    """A server and what it can be asked; ``under_way`` counts the requests that it has not answered."""

    server: TorchServe
    good: list[Question]
    bad: list[Question]
    under_way: int = field(default=0)

    @property
    def port(self) -> int:
        return self.server.ports.inference


def question(name: str, picture: bytes, server: TorchServe, pipeline: Pipeline, version: str = "1.0") -> Question:
    status, answer = _expected(pipeline, picture, version)
    return Question(name, prediction_request(server, picture), status, answer)


def endpoint_of(server: TorchServe, pipeline: Pipeline, version: str = "1.0") -> Endpoint:
    """All questions for one server."""
    good = GOOD | {f"noise {index}": data for index, data in enumerate(_noise())}
    bad = BAD | {name: make() for name, make in BOMBS.items()}
    return Endpoint(
        server,
        [question(name, data, server, pipeline, version) for name, data in good.items()],
        [question(name, data, server, pipeline, version) for name, data in bad.items()]
        + [_malformed(name, server) for name in _MALFORMED],
    )


def _malformed(name: str, server: TorchServe) -> Question:
    headers, content_type, body, status, code = _MALFORMED[name]
    return Question(name, prediction_request(server, body, headers, content_type), status, code)


@cache
def _noise() -> list[bytes]:
    return made_jpegs(16)


@cache
def _expected(pipeline: Pipeline, picture: bytes, version: str) -> tuple[int, dict[str, object] | str]:
    (result,) = pipeline.predict([picture])
    if isinstance(result, Prediction):
        return 200, prediction_to_dict(result, ModelInfo("afd", version))
    return status_of(result.code).value, failure_to_dict(result)["error"]["code"]


@cache
def large_picture() -> bytes:
    """48 megapixels, progressive, so that all of its coefficients, 144 MB, lie in memory while it is read."""
    with Image.open(io.BytesIO(_noise()[-1])) as tile:
        whole = Image.new("RGB", (8000, 6000))
        for x in range(0, 8000, tile.width):
            for y in range(0, 6000, tile.height):
                whole.paste(tile, (x, y))
    out = io.BytesIO()
    whole.save(out, "JPEG", quality=60, progressive=True)
    return out.getvalue()
