"""How each server wants to be asked and how it answers, as bytes: Triton and TorchServe, each over HTTP and gRPC."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from afd_serve.client.channels import Call, Reply
from afd_serve.client.regions import Region
from afd_serve.errors import (
    BadAnswerError,
    ClientError,
    DependencyError,
    RequestRefusedError,
    ServerUnavailableError,
)
from afd_serve.request import REQUEST_ID, Options
from afd_serve.response import read_result
from afd_serve.results import Failure, Prediction
from afd_serve.triton_protocol import ANSWER, PICTURE, read_error

try:
    from google.protobuf.message import DecodeError
    from tritonclient.grpc import service_pb2
except ModuleNotFoundError as error:
    raise DependencyError(f"the client needs {error.name}: pip install 'afd-serve[client]'") from error

__all__ = [
    "Dialect",
    "LostRegionError",
    "Question",
    "TorchServeGrpc",
    "TorchServeHttp",
    "TritonGrpc",
    "TritonHttp",
    "WorkerDiedError",
    "is_in_use",
    "serialize",
]

Result = Prediction | Failure

_REQUEST_CODES: Final = frozenset(
    {"bad_request", "bad_option", "too_many_pictures", "answer_too_large", "unsupported_encoding"}
)
"""Failures that are the request's, not a picture's."""

_PNG: Final = b"\x89PNG\r\n\x1a\n"


class LostRegionError(RequestRefusedError):
    """The server does not know a shared memory region: it has been started anew."""


class WorkerDiedError(ServerUnavailableError):
    """The worker that had the request died, be it of the request or of something else; the server replaces it."""


@dataclass(frozen=True)
class Question:
    """One request: pictures to be classified within ``timeout`` seconds."""

    pictures: Sequence[bytes]
    options: Options
    request_id: str
    timeout: float


class Dialect(Protocol):
    """One server's language over one transport."""

    def ask(self, question: Question) -> Call:
        """The call that asks."""

    def read(self, reply: Reply, count: int) -> list[Result]:
        """The results for ``count`` pictures.

        Raises:
            RequestRefusedError: The server does not take the request.
            BadAnswerError: The reply makes no sense.
            ServerUnavailableError: The server says that it cannot work now.
        """


def serialize(pictures: Sequence[bytes]) -> bytes:
    """Triton's form of a STRING tensor: each element after its length in four bytes."""
    return b"".join(len(picture).to_bytes(4, "little") + picture for picture in pictures)


def _options(options: Options) -> dict[str, str]:
    """The options on the wire; a mode that is left to the model is left out."""
    given = {"top_k": str(options.top_k), "crop": "on" if options.crop else "off"}
    return given if options.mode is None else given | {"afd": options.mode.value}


def _microseconds(question: Question) -> int:
    """Triton's measure of how long a request may wait in a queue."""
    return max(1, round(question.timeout * 1e6))


class TritonHttp:
    """Triton's HTTP protocol with binary data."""

    def __init__(self, model: str) -> None:
        self._target = f"/v2/models/{model}/infer"

    def ask(self, question: Question) -> Call:
        """See `Dialect.ask`."""
        data = serialize(question.pictures)
        return self._call(question, {"binary_data_size": len(data)}, data)

    def ask_in_region(self, question: Question, region: Region, size: int) -> Call:
        """As `ask`, with the pictures serialized in the first ``size`` bytes of a registered region."""
        return self._call(question, {"shared_memory_region": region.name, "shared_memory_byte_size": size}, b"")

    def _call(self, question: Question, where: dict[str, Any], data: bytes) -> Call:
        picture = {"name": PICTURE, "shape": [len(question.pictures), 1], "datatype": "BYTES", "parameters": where}
        header = {
            "id": question.request_id,
            "parameters": _options(question.options) | {"timeout": _microseconds(question)},
            "inputs": [picture],
            "outputs": [{"name": ANSWER, "parameters": {"binary_data": False}}],
        }
        text = json.dumps(header).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
        return Call(self._target, text + data, headers)

    def read(self, reply: Reply, count: int) -> list[Result]:
        """See `Dialect.read`."""
        if reply.status != 200:
            value = _json_or_none(reply.body)
            said = str(value["error"]) if isinstance(value, dict) and "error" in value else reply.words
            return _triton_failure(reply.status, said, count)
        try:
            texts = list(_parse(reply.body, dict)["outputs"][0]["data"])
        except (LookupError, TypeError) as error:
            raise BadAnswerError(f"the answer has no output: {reply.body!r:.200}") from error
        return _results([_parse(text, dict) for text in texts], count)

    def register(self, region: Region) -> Call:
        """The call that makes the server map a region."""
        body = json.dumps({"key": f"/{region.name}", "offset": 0, "byte_size": region.size}).encode()
        return Call(f"/v2/systemsharedmemory/region/{region.name}/register", body)

    def unregister(self, region: Region) -> Call:
        """The call that makes the server unmap a region."""
        return Call(f"/v2/systemsharedmemory/region/{region.name}/unregister", b"{}")


def is_in_use(reply: Reply) -> bool:
    """Whether Triton keeps a region that it was to unregister, because a request still reads it."""
    return reply.status != 200 and "currently in use" in reply.words


class TritonGrpc:
    """Triton's gRPC protocol."""

    def __init__(self, model: str) -> None:
        self._model = model

    def ask(self, question: Question) -> Call:
        """See `Dialect.ask`."""
        request = self._request(question)
        request.raw_input_contents.append(serialize(question.pictures))
        return Call(f"{_TRITON}/ModelInfer", request.SerializeToString())

    def ask_in_region(self, question: Question, region: Region, size: int) -> Call:
        """As `ask`, with the pictures serialized in the first ``size`` bytes of a registered region."""
        request = self._request(question)
        request.inputs[0].parameters["shared_memory_region"].string_param = region.name
        request.inputs[0].parameters["shared_memory_byte_size"].int64_param = size
        return Call(f"{_TRITON}/ModelInfer", request.SerializeToString())

    def _request(self, question: Question) -> Any:
        request = service_pb2.ModelInferRequest(model_name=self._model, id=question.request_id)
        request.inputs.add(name=PICTURE, datatype="BYTES", shape=[len(question.pictures), 1])
        request.outputs.add(name=ANSWER)
        for name, value in _options(question.options).items():
            request.parameters[name].string_param = value
        request.parameters["timeout"].int64_param = _microseconds(question)
        return request

    def read(self, reply: Reply, count: int) -> list[Result]:
        """See `Dialect.read`."""
        if reply.status != 200:
            return _triton_failure(reply.status, reply.message, count)
        try:
            response = service_pb2.ModelInferResponse.FromString(reply.body)
        except DecodeError as error:
            raise BadAnswerError(f"the answer is no message of Triton's: {reply.body!r:.200}") from error
        if len(response.raw_output_contents) != 1:
            raise BadAnswerError(f"the answer has {len(response.raw_output_contents)} outputs instead of one")
        return _results([_parse(text, dict) for text in _deserialize(response.raw_output_contents[0])], count)

    def register(self, region: Region) -> Call:
        """The call that makes the server map a region."""
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", offset=0, byte_size=region.size
        )
        return Call(f"{_TRITON}/SystemSharedMemoryRegister", request.SerializeToString())

    def unregister(self, region: Region) -> Call:
        """The call that makes the server unmap a region."""
        request = service_pb2.SystemSharedMemoryUnregisterRequest(name=region.name)
        return Call(f"{_TRITON}/SystemSharedMemoryUnregister", request.SerializeToString())


_TRITON: Final = "/inference.GRPCInferenceService"


def _deserialize(data: bytes) -> list[bytes]:
    texts, start = [], 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        texts.append(data[start + 4 : end])
        start = end
    return texts


def _triton_failure(status: int, message: str, count: int) -> list[Result]:
    found = read_error(message)
    if found and found[0] in _REQUEST_CODES:
        raise RequestRefusedError.of(Failure(*found))
    if found and count == 1:
        return [Failure(*found)]
    if "shared memory region" in message:
        raise LostRegionError(message)
    if "Stub process" in message:  # the supervisor replaces it
        raise ServerUnavailableError(message)
    raise (RequestRefusedError if 400 <= status < 500 else BadAnswerError)(f"the server answered {status}: {message}")


class TorchServeHttp:
    """TorchServe's REST API."""

    def __init__(self, model: str) -> None:
        self._model = model

    def ask(self, question: Question) -> Call:
        """See `Dialect.ask`."""
        return self._call("predictions", question)

    def ask_why(self, question: Question) -> Call:
        """The call that has the drift map of the only picture drawn."""
        return self._call("explanations", question, format="png")

    def _call(self, route: str, question: Question, **more: str) -> Call:
        headers = {"Content-Type": "application/json", "X-Request-Id": question.request_id}
        return Call(f"/{route}/{self._model}", _instances(question, **more), headers)

    def read(self, reply: Reply, count: int) -> list[Result]:
        """See `Dialect.read`."""
        return _torchserve_results(reply, count)

    def read_drawing(self, reply: Reply) -> bytes | Failure:
        """The PNG, or why the picture cannot be used; raises what `Dialect.read` raises."""
        if reply.status == 200 and reply.body.startswith(_PNG):
            return reply.body
        value = _json_or_none(reply.body)
        if isinstance(value, dict) and isinstance(value.get("error"), dict):
            (failure,) = _results([value], 1)
            if isinstance(failure, Failure) and failure.code not in _REQUEST_CODES:
                return failure
        raise _torchserve_fault(reply)


class TorchServeGrpc:
    """TorchServe's gRPC API; its two messages are small enough to be written by hand."""

    def __init__(self, model: str) -> None:
        self._model = model

    def ask(self, question: Question) -> Call:
        """See `Dialect.ask`."""
        # PredictionsRequest: model_name = 1, map<string, bytes> input = 3.
        entry = _field(1, b"data") + _field(2, _instances(question))
        body = _field(1, self._model.encode()) + _field(3, entry)
        return Call("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions", body)

    def read(self, reply: Reply, count: int) -> list[Result]:
        """See `Dialect.read`."""
        if reply.status != 200:
            return _torchserve_results(reply, count)
        # PredictionResponse: bytes prediction = 1.
        size, start = _varint(reply.body, 1)
        return _torchserve_results(Reply(reply.status, reply.body[start : start + size]), count)


def _field(number: int, value: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, encoded = len(value), bytearray([number << 3 | 2])
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + value


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """A protobuf integer and the index after it."""
    value = shift = 0
    for index in range(start, len(data)):
        value |= (data[index] & 127) << shift
        shift += 7
        if data[index] < 128:
            return value, index + 1
    raise BadAnswerError("the answer ends in the middle of a number")


def _instances(question: Question, **more: str) -> bytes:
    """A request's body; over gRPC no header could carry the id."""
    instances = [{"b64": base64.b64encode(picture).decode()} for picture in question.pictures]
    beside = _options(question.options) | {REQUEST_ID: question.request_id} | more
    return json.dumps({"instances": instances} | beside).encode()


def _torchserve_results(reply: Reply, count: int) -> list[Result]:
    values = _json_or_none(reply.body)
    if isinstance(values, list) and reply.status == 200:
        return _results(values, count)
    raise _torchserve_fault(reply)


def _torchserve_fault(reply: Reply) -> ClientError:
    """What is wrong with a request, or with the server, that got no answer."""
    said = reply.words
    if reply.status >= 500 and "Worker died" in said:  # the status is 500 or 507
        return WorkerDiedError(said)
    # Over gRPC neither a full queue nor an unknown model nor a refusal has a status; words and body tell.
    if "has no worker to serve inference request" in reply.message:
        return ServerUnavailableError(said)
    if failure := _failure_in(reply.body):
        return RequestRefusedError.of(failure)
    refused = 400 <= reply.status < 500 or "ModelNotFoundException" in reply.message
    return (RequestRefusedError if refused else BadAnswerError)(f"the server answered {reply.status}: {said}")


def _failure_in(body: bytes) -> Failure | None:
    """What a body says in the wire format of `afd_serve.response` where that is a failure."""
    try:
        result = read_result(_json_or_none(body))
    except ValueError:
        return None
    return result if isinstance(result, Failure) else None


def _json_or_none(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _parse(text: str | bytes, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:  # what is no text has another type
        raise BadAnswerError(f"the answer is no JSON: {text!r:.200}") from error
    if not isinstance(value, kind):
        raise BadAnswerError(f"the answer is no {kind.__name__}: {text!r:.200}")
    return value


def _results(values: Sequence[object], count: int) -> list[Result]:
    if len(values) != count:
        raise BadAnswerError(f"{count} pictures were asked for and {len(values)} answers came")
    try:
        return [read_result(value) for value in values]
    except ValueError as error:
        raise BadAnswerError(str(error)) from error
