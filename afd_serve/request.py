"""The wire format of requests: named parts and headers in, pictures and options out.

A part is what a server found in a request under one name: a raw body, a multipart field, a gRPC input. Each part is

- one encoded picture (any bytes), or
- a JSON object, as bytes or parsed: ``{"b64": "..."}`` for one picture, ``{"instances": [{"b64": "..."}, ...]}`` for
  several; the options may stand beside them, or
- one of the options below, where it has an option's name.

Options come as JSON keys, as parts or as headers; where they disagree, the order of precedence is the same. As a header
``top_k`` may be ``top-k``: many proxies drop names with underscores.

- ``afd``: ``protect`` (or ``on``), ``off`` or ``shadow``, see `Mode`; by default what the server's model is set to.
- ``top_k``: how many classes to return, 5 by default.
- ``crop``: ``on`` (default) or ``off``: with ``off`` the picture already is the model's crop.
- ``format``: ``json`` or ``png``, of explanations only (`afd_serve.explanations`); predictions are JSON.

A server that keeps parts in a dictionary (TorchServe) drops all but the last of two parts with one name, so the
pictures of one multipart request need names of their own.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias

from afd_serve.errors import InputError
from afd_serve.mode import Mode
from afd_serve.results import Failure

__all__ = [
    "DEFAULT_TOP_K",
    "MAX_PICTURES",
    "MAX_TOP_K",
    "BadOptionError",
    "Options",
    "Picture",
    "Request",
    "RequestError",
    "TooManyPicturesError",
    "option_name",
    "read_mode",
    "read_options",
    "read_request",
]

DEFAULT_TOP_K: Final = 5
MAX_TOP_K: Final = 100
MAX_PICTURES: Final = 32
"""Pictures per request: with `MAX_TOP_K` classes each, the answer stays far below any server's limit."""

Picture: TypeAlias = bytes | bytearray | Failure
"""An encoded picture, or why this one could not be taken out of the request."""

_OPTIONS: Final = ("afd", "top_k", "crop", "format")
# TorchServe hands the query of its /invocations route on as parts.
_IGNORED: Final = frozenset({"model_name"})
_SWITCH: Final = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}


class RequestError(InputError):
    """The request as a whole has no meaning."""

    code: ClassVar[str] = "bad_request"


class BadOptionError(RequestError):
    """An option has a value that it cannot have."""

    code: ClassVar[str] = "bad_option"


class TooManyPicturesError(RequestError):
    """More pictures than one request may carry."""

    code: ClassVar[str] = "too_many_pictures"


@dataclass(frozen=True)
class Options:
    """What a client may choose per request; where ``mode`` is None, what the server's model is set to counts."""

    mode: Mode | None = None
    top_k: int = DEFAULT_TOP_K
    crop: bool = True


@dataclass(frozen=True)
class Request:
    """One client's request: its pictures in order, whether one bare picture was meant, and the format as asked for."""

    pictures: tuple[Picture, ...]
    single: bool
    options: Options
    format: str | None = None


def read_request(parts: Mapping[str, object], headers: Mapping[str, object]) -> Request:
    """Take a request apart.

    Args:
        parts: Name to value: bytes, text, or parsed JSON.
        headers: Name to value, names in any case; values that are not text are no headers of the client.

    Raises:
        RequestError: The request as a whole cannot be answered; a fault in one of its pictures is a `Failure` in
            ``pictures`` instead.
    """
    given: dict[str, object] = {option_name(name): value for name, value in headers.items() if isinstance(value, str)}
    given |= {name: value for name, value in parts.items() if name in _OPTIONS}
    pictures: list[Picture] = []
    single = True
    for name, part in parts.items():
        if name in _OPTIONS or name in _IGNORED:
            continue
        value = _parse_json(part)
        if isinstance(value, dict):
            given |= {key: value[key] for key in _OPTIONS if key in value}
            single = single and "instances" not in value
            pictures.extend(_instances(value))
        else:
            pictures.append(_raw(value))
        if len(pictures) > MAX_PICTURES:
            raise TooManyPicturesError(f"a request carries at most {MAX_PICTURES} pictures")
    if not pictures:
        raise RequestError("the request has no picture: send its bytes as the body, a multipart field or base64 JSON")
    form = _text(given["format"]) if "format" in given else None
    return Request(tuple(pictures), single and len(pictures) == 1, read_options(given), form)


def option_name(header: str) -> str:
    """The option that a header of this name stands for, if it is one's."""
    return header.lower().replace("-", "_")


def _parse_json(part: object) -> object:
    """Parsed JSON where the part is a JSON object in bytes; everything else as it is.

    The content type is no guide: clients leave it out, add a charset, or speak gRPC. No picture starts with a brace.
    """
    if not isinstance(part, (bytes, bytearray)) or not part[:64].lstrip().startswith(b"{"):
        return part
    try:
        return json.loads(part)
    except (ValueError, RecursionError) as error:
        raise RequestError("the JSON cannot be parsed") from error


def _instances(value: Mapping[str, Any]) -> Iterator[Picture]:
    instances = value.get("instances", [value])
    if not isinstance(instances, list):
        raise RequestError('"instances" must be a list')
    if len(instances) > MAX_PICTURES:
        raise TooManyPicturesError(f"a request carries at most {MAX_PICTURES} pictures")
    for instance in instances:
        yield _decode(instance.get("b64") if isinstance(instance, dict) else instance)


def _decode(text: object) -> Picture:
    if not isinstance(text, str):
        return Failure("bad_input", 'each picture in JSON is {"b64": "<base64 of the file>"}')
    try:
        # Encoders wrap lines; every other character outside the alphabet is an error.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        return Failure("bad_base64", f"the base64 text cannot be decoded: {error}")


def _raw(part: object) -> Picture:
    if isinstance(part, (bytes, bytearray)):
        return part
    if isinstance(part, str):
        return part.encode(errors="replace")
    return Failure("bad_input", "a picture is the bytes of a file, or a JSON object with base64")


def read_options(given: Mapping[str, object]) -> Options:
    """Take the options out of names and values; other names are left alone.

    Raises:
        BadOptionError: An option has a value that it cannot have.
    """
    values = {name: _text(given[name]) for name in _OPTIONS if name in given}
    return Options(
        mode=read_mode(values["afd"]) if "afd" in values else None,
        top_k=_count("top_k", values.get("top_k", str(DEFAULT_TOP_K))),
        crop=_switch("crop", values.get("crop", "on")),
    )


def read_mode(value: object) -> Mode:
    """The mode that an option ``afd`` or a model's setting names; a switch, as YAML makes one of ``off``, will do.

    Raises:
        BadOptionError: There is no such mode.
    """
    text = _text(value)
    try:
        return Mode.of(_SWITCH[text]) if text in _SWITCH else Mode(text)
    except ValueError:
        raise BadOptionError("afd is protect (or on), off or shadow") from None


def _text(value: object) -> str:
    text = bytes(value).decode(errors="replace") if isinstance(value, (bytes, bytearray)) else str(value)
    return text.strip().lower()


def _switch(name: str, text: str) -> bool:
    if text not in _SWITCH:
        raise BadOptionError(f"{name} is on or off")
    return _SWITCH[text]


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MAX_TOP_K):
        raise BadOptionError(f"{name} is a whole number from 1 to {MAX_TOP_K}")
    return int(text)
