"""The wire format of requests."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afd_serve import request as request_module
from afd_serve.errors import ConfigError
from afd_serve.mode import Mode
from afd_serve.pipeline import Failure
from afd_serve.request import (
    MAX_PICTURES,
    BadOptionError,
    Options,
    Request,
    RequestError,
    TooManyPicturesError,
    UnsupportedEncodingError,
    read_mode,
    read_request,
)

PICTURE = b"\xff\xd8picture"
TEXT = base64.b64encode(PICTURE).decode()


def read(parts: dict[str, Any], **headers: Any) -> Request:
    return read_request(parts, headers)


@pytest.mark.parametrize("name", ["body", "data", "file", "any other name"])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_raw_bytes_under_any_name(name: str, kind: Callable[[bytes], object]) -> None:
    assert read({name: kind(PICTURE)}) == Request((PICTURE,), single=True, options=Options())


def test_multipart_fields_are_pictures_in_order() -> None:
    request = read({"b": b"first", "a": b"second", "afd": bytearray(b"off"), "top_k": bytearray(b"3")})
    assert request == Request((b"first", b"second"), single=False, options=Options(Mode.OFF, top_k=3))


@pytest.mark.parametrize("name", ["top-k", "TOP_K", "Top-K"])
def test_a_part_is_an_option_however_its_name_is_written(name: str) -> None:
    assert read({"a": PICTURE, name: b"3"}) == Request((PICTURE,), single=True, options=Options(top_k=3))


def test_what_the_frontend_adds_of_its_own_is_no_picture() -> None:
    assert read({"body": PICTURE, "model_name": "afd", "model_version": "1.0"}).pictures == (PICTURE,)


@pytest.mark.parametrize("before", ["\ufeff", " " * 80, "\ufeff\r\n" + "\t" * 1000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_json_may_begin_with_a_byte_order_mark_and_blanks(before: str, kind: Callable[[bytes], object]) -> None:
    text = before + json.dumps({"b64": TEXT, "top_k": 2})
    assert read({"body": kind(text.encode())}) == Request((PICTURE,), single=True, options=Options(top_k=2))


@pytest.mark.parametrize("name", ["Content-Encoding", "content-encoding"])
def test_a_compressed_body_is_refused_and_not_taken_for_a_picture(name: str) -> None:
    for encoding in ("gzip", "deflate", "identity, gzip"):
        with pytest.raises(UnsupportedEncodingError, match="must not be compressed"):
            read({"body": PICTURE}, **{name: encoding})
    assert read({"body": PICTURE}, **{name: "Identity"}).pictures == (PICTURE,)


@pytest.mark.parametrize("encode", [lambda value: value, lambda value: json.dumps(value, indent=1).encode()])
class TestJson:
    def test_one_picture(self, encode: Callable[[Any], Any]) -> None:
        request = read({"body": encode({"b64": TEXT, "afd": False, "top_k": 7, "crop": "off"})})
        assert request == Request((PICTURE,), single=True, options=Options(Mode.OFF, top_k=7, crop=False))

    def test_instances_are_answered_by_a_list_even_when_there_is_one(self, encode: Callable[[Any], Any]) -> None:
        assert read({"body": encode({"instances": [{"b64": TEXT}]})}) == Request((PICTURE,), False, Options())
        assert read({"body": encode({"instances": [TEXT, {"b64": TEXT}]})}).pictures == (PICTURE, PICTURE)

    @pytest.mark.parametrize("bad", [{"b64": "%"}, {"b64": "QQ"}, {"b64": "ä"}, {"b64": 1}, {}, None, 3])
    def test_a_bad_instance_leaves_its_neighbours_alone(self, encode: Callable[[Any], Any], bad: Any) -> None:
        good, failure, other = read({"body": encode({"instances": [TEXT, bad, TEXT]})}).pictures
        assert good == other == PICTURE
        assert isinstance(failure, Failure)
        assert failure.code in {"bad_base64", "bad_input"}

    def test_wrapped_lines_are_fine(self, encode: Callable[[Any], Any]) -> None:
        wrapped = base64.encodebytes(PICTURE * 20).decode()
        assert "\n" in wrapped.strip()
        assert read({"body": encode({"b64": wrapped})}).pictures == (PICTURE * 20,)

    @pytest.mark.parametrize("instances", [None, 1, "text", {"b64": TEXT}, []])
    def test_instances_that_are_no_list_of_pictures(self, encode: Callable[[Any], Any], instances: Any) -> None:
        with pytest.raises(RequestError):
            read({"body": encode({"instances": instances})})


@pytest.mark.parametrize("body", [b"{", b'{"b64": ', b'{"a":' * 100_000])
def test_json_that_cannot_be_parsed(body: Any) -> None:
    with pytest.raises(RequestError, match="JSON"):
        read({"body": body})


@pytest.mark.parametrize("body", [None, 1, [1, 2], b"[]", b'\xef\xbb\xbf [{"b64": "QUJD"}]', bytearray(b'["QUJD"]')])
def test_json_that_is_no_object(body: Any) -> None:
    (failure,) = read({"body": body}).pictures
    assert isinstance(failure, Failure)
    assert failure.code == "bad_input"


def test_options_from_headers_in_any_case_and_their_precedence() -> None:
    body = {"b64": TEXT}
    assert read({"body": body}, AFD="Off", Top_K=" 2 ").options == Options(Mode.OFF, top_k=2)
    assert read({"body": body}, **{"Top-K": "2"}).options.top_k == 2  # proxies drop names with underscores
    assert read({"body": body, "top_k": b"3"}, top_k="2").options.top_k == 3
    assert read({"body": body | {"top_k": 4}, "top_k": b"3"}, top_k="2").options.top_k == 4


def test_an_option_may_be_json_text_as_in_a_field_of_that_type() -> None:
    given = {"x": PICTURE, "afd": b'"off"', "top_k": b"3", "crop": bytearray(b' "off"\n')}
    assert read(given).options == Options(Mode.OFF, top_k=3, crop=False)
    with pytest.raises(BadOptionError):
        read({"x": PICTURE, "afd": b'"off'})


def test_what_a_server_puts_among_the_headers_is_no_option() -> None:
    # TorchServe lists the content type of each part under the part's name.
    assert read({"x": PICTURE}, top_k={"content-type": "text/plain"}).options == Options()


@pytest.mark.parametrize(
    ("mode", "spellings"),
    [
        (Mode.PROTECT, ["protect", "Protect ", b"on", "true", True, "1", 1]),
        (Mode.OFF, ["off", bytearray(b"OFF"), "false", False, "0", 0]),
        (Mode.SHADOW, ["shadow", b" SHADOW"]),
    ],
)
def test_spellings_of_the_modes(mode: Mode, spellings: list[object]) -> None:
    assert [read_mode(spelling) for spelling in spellings] == [mode] * len(spellings)
    assert read({"x": PICTURE, "afd": spellings[0]}).options == Options(mode)


@pytest.mark.parametrize("choice", ["off", Mode.OFF, False])
def test_the_mode_among_options_is_given_as_to_the_pipeline(choice: Any) -> None:
    assert Options(choice).mode is Mode.OFF


@pytest.mark.parametrize(
    "impossible",
    [{"mode": "perhaps"}, {"crop": "off"}, {"crop": 1}, *({"top_k": value} for value in (0, -1, 5.0, "5", True, None))],
)
def test_impossible_options_are_not_made(impossible: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Options(**impossible)


def test_a_request_that_names_no_mode_leaves_it_to_the_model() -> None:
    assert read({"x": PICTURE}).options.mode is None


def test_a_mode_that_does_not_exist_is_answered_by_those_that_do() -> None:
    with pytest.raises(BadOptionError, match=r"^afd is protect \(or on\), off or shadow$"):
        read({"x": PICTURE}, afd="shade")


@pytest.mark.parametrize("header", [{"afd": "perhaps"}, {"crop": ""}, {"top_k": "0"}, {"top_k": "101"}])
def test_bad_options(header: dict[str, str]) -> None:
    with pytest.raises(BadOptionError):
        read_request({"body": PICTURE}, header)


@pytest.mark.parametrize("value", ["-1", "1.5", "5e1", "٣", "9" * 5000, "", "x"])
def test_top_k_is_a_plain_number(value: str) -> None:
    with pytest.raises(BadOptionError):
        read_request({"body": PICTURE}, {"top_k": value})


@pytest.mark.parametrize("parts", [{}, {"top_k": b"3"}, {"model_name": "afd"}])
def test_no_picture(parts: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="no picture"):
        read(parts)


def test_an_empty_body_is_a_picture_that_the_pipeline_refuses() -> None:
    assert read({"body": b""}).pictures == (b"",)


def test_the_number_of_pictures_is_bounded() -> None:
    assert len(read({str(index): PICTURE for index in range(MAX_PICTURES)}).pictures) == MAX_PICTURES
    with pytest.raises(TooManyPicturesError):
        read({str(index): PICTURE for index in range(MAX_PICTURES + 1)})
    with pytest.raises(TooManyPicturesError):
        read({"body": {"instances": [TEXT] * (MAX_PICTURES + 1)}})


def test_parts_are_counted_before_any_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    class Parts(dict[str, Any]):
        def items(self) -> Any:
            pytest.fail("went through all parts")

    monkeypatch.setattr(request_module, "_parse_json", lambda _: pytest.fail("parsed"))
    with pytest.raises(TooManyPicturesError):
        read(Parts({str(index): b"{" for index in range(MAX_PICTURES + 1)}))


def test_json_of_countless_values_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    instances = {"instances": [{"b64": TEXT * 1000}] * MAX_PICTURES, "other": list(range(5_000))}
    assert len(read({"body": json.dumps(instances).encode()}).pictures) == MAX_PICTURES
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("parsed"))
    for value in (b"[]", b"{}", b"1"):
        with pytest.raises(RequestError, match="too many values"):
            read({"body": b'{"x":[' + value + (b"," + value) * 10_000 + b"]}"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text() | st.sampled_from(["b64", "instances"]), children),
    max_leaves=10,
)
part_names = st.text() | st.sampled_from(["body", "afd", "top_k", "crop"])


@given(
    st.dictionaries(part_names, st.binary() | st.text() | json_values, max_size=4),
    st.dictionaries(part_names, st.text() | st.none(), max_size=4),
)
def test_whatever_comes_is_read_or_refused(parts: dict[str, Any], headers: dict[str, Any]) -> None:
    try:
        request = read_request(parts, headers)
    except RequestError:
        return
    assert request.pictures
