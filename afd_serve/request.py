"""The wire format of requests: named parts and headers in, pictures and options out.

A part is what a server found in a request under one name: a raw body, a multipart field, a gRPC input. Each part is

- one encoded picture (any bytes), or
- a JSON object, as bytes or parsed: ``{"b64": "..."}`` for one picture, ``{"instances": [{"b64": "..."}, ...]}`` for
  several; the options may stand beside them, or
- one of the options below, where it has an option's name.

Options come as JSON keys, as parts or as headers; where they disagree, the order of precedence is the same. As a header
or a part ``top_k`` may be ``top-k``, in any case: many proxies drop names with underscores.

- ``afd``: ``protect`` (or ``on``), ``off`` or ``shadow``, see `Mode`; by default what the server's model is set to.
- ``top_k``: how many classes to return, 5 by default.
- ``crop``: ``on`` (default) or ``off``: with ``off`` the picture already is the model's crop.
- ``format``: ``json`` or ``png``, of explanations only (`afd_serve.explanations`); predictions are JSON.

A request may have an id, in the header ``X-Request-Id`` or as the JSON key ``x_request_id``; it tells a health probe
from other requests (`afd_serve.sample.is_probe`).

A server that keeps parts in a dictionary (TorchServe) drops all but the last of two parts with one name, so the
pictures of one multipart request need names of their own.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Final, TypeAlias

from afd_serve.errors import ConfigError, InputError
from afd_serve.mode import Mode
from afd_serve.results import Failure

__all__ = [
    "CROWDED_OUT",
    "DEFAULT_TOP_K",
    "MAX_PICTURES",
    "MAX_TOP_K",
    "REQUEST_ID",
    "BadOptionError",
    "Options",
    "Picture",
    "Request",
    "RequestError",
    "TooManyPicturesError",
    "UnsupportedEncodingError",
    "option_name",
    "read_mode",
    "read_options",
    "read_request",
]

DEFAULT_TOP_K: Final = 5
MAX_TOP_K: Final = 100
MAX_PICTURES: Final = 32
"""Pictures per request: with `MAX_TOP_K` classes each, the answer stays far below any server's limit."""

CROWDED_OUT: Final = "crowded_out"
"""The code of a picture that a request has no room for beside its others, see `afd_serve.budget`; in a request of its
own it is answered."""

Picture: TypeAlias = bytes | bytearray | Failure
"""An encoded picture, or why this one could not be taken out of the request."""

REQUEST_ID: Final = "x_request_id"
"""The JSON key of a request's id, for clients whose protocol has no headers."""

_OPTIONS: Final = ("afd", "top_k", "crop", "format")
# TorchServe hands the query of its /invocations route on as parts.
_IGNORED: Final = frozenset({"model_name", "model_version"})
_JSON: Final = re.compile(rb"(?:\xef\xbb\xbf)?\s*+[\[{]")
_QUOTED: Final = re.compile(r'\A"(.*)"\Z', re.DOTALL)
"""A text as JSON has it, which a multipart field of the type application/json holds."""

_MAX_VALUES: Final = 10_000
"""Lists, objects and what they hold in one JSON body. Base64 has none of their marks, so pictures do not count; parsing
31 MB of nothing but them would take seconds and a gigabyte."""

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


class UnsupportedEncodingError(RequestError):
    """The body is compressed once more, which nobody here undoes: a few bytes could become any number of them."""

    code: ClassVar[str] = "unsupported_encoding"


@dataclass(frozen=True)
class Options:
    """What a client may choose per request.

    Attributes:
        mode: Also given as `Mode.of` takes it; where None, what the server's model is set to counts.
        top_k: From 1 on; servers name `MAX_TOP_K` classes at most.
        crop: Whether to crop, or to take pictures as cropped already.

    Raises:
        ConfigError: One has an impossible value. Texts are none for ``crop``: every one but the empty would be true.
    """

    mode: Mode | None = None
    top_k: int = DEFAULT_TOP_K
    crop: bool = True

    def __post_init__(self) -> None:
        if self.mode is not None:
            object.__setattr__(self, "mode", Mode.of(self.mode))
        if not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 1:
            raise ConfigError(f"top_k is a whole number from 1 on, not {self.top_k!r}")
        if not isinstance(self.crop, bool):
            raise ConfigError(f"crop is True or False, not {self.crop!r}")


@dataclass(frozen=True)
class Request:
    """One client's request: its pictures in order, whether one bare picture was meant, and the format as asked for.

    Its id is what the client calls it, if anything.
    """

    pictures: tuple[Picture, ...]
    single: bool
    options: Options
    format: str | None = None
    request_id: object = None


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
    if _text(given.get("content_encoding", "")) not in ("", "identity"):
        raise UnsupportedEncodingError("the body must not be compressed: send it without a Content-Encoding")
    # There is no end of parts that a request may have, but few names that are no picture's: counting comes first.
    named = list(islice((name for name in parts if _is_a_pictures(name)), MAX_PICTURES + 1))
    _check_count(len(named))
    given |= {option_name(name): value for name, value in parts.items() if option_name(name) in _OPTIONS}
    pictures: list[Picture] = []
    single = True
    for name in named:
        value = _parse_json(parts[name])
        if isinstance(value, dict):
            given |= {key: value[key] for key in (*_OPTIONS, REQUEST_ID) if key in value}
            single = single and "instances" not in value
            pictures.extend(_instances(value))
        else:
            pictures.append(_raw(value))
        _check_count(len(pictures))
    if not pictures:
        raise RequestError("the request has no picture: send its bytes as the body, a multipart field or base64 JSON")
    form = _text(given["format"]) if "format" in given else None
    return Request(tuple(pictures), single and len(pictures) == 1, read_options(given), form, given.get(REQUEST_ID))


def _is_a_pictures(name: str) -> bool:
    """Whether a part of this name is a picture or has pictures."""
    return option_name(name) not in _OPTIONS and name not in _IGNORED


def _check_count(pictures: int) -> None:
    if pictures > MAX_PICTURES:
        raise TooManyPicturesError(f"a request carries at most {MAX_PICTURES} pictures")


def option_name(name: str) -> str:
    """The option that a header, a part or a parameter of this name stands for, if it is one's."""
    return name.lower().replace("-", "_")


def _parse_json(part: object) -> object:
    """Parsed JSON where the part is a JSON object or array in bytes; everything else as it is.

    The content type is no guide: clients leave it out, add a charset, or speak gRPC. No picture starts with a brace or
    a bracket, or with a byte order mark or blanks before one.
    """
    if not isinstance(part, (bytes, bytearray)) or not _JSON.match(part):
        return part
    if sum(part.count(mark) for mark in b"[{,") > _MAX_VALUES:
        raise RequestError(f"the JSON has too many values; {_MAX_VALUES} are enough for {MAX_PICTURES} pictures")
    try:
        return json.loads(part)
    except (ValueError, RecursionError) as error:
        raise RequestError("the JSON cannot be parsed") from error


def _instances(value: Mapping[str, Any]) -> Iterator[Picture]:
    instances = value.get("instances", [value])
    if not isinstance(instances, list):
        raise RequestError('"instances" must be a list')
    _check_count(len(instances))
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
    return Failure("bad_input", 'a picture is the bytes of a file, or the JSON object {"b64": "<base64 of the file>"}')


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
    return _QUOTED.sub(r"\1", text.strip().lower())


def _switch(name: str, text: str) -> bool:
    if text not in _SWITCH:
        raise BadOptionError(f"{name} is on or off")
    return _SWITCH[text]


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= MAX_TOP_K):
        raise BadOptionError(f"{name} is a whole number from 1 to {MAX_TOP_K}")
    return int(text)
