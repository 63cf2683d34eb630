"""The protocols: what a client would send, file for file."""

import io
import os

import numpy as np
import pytest
from PIL import Image, features

from afd_serve.errors import ConfigError
from afd_serve.evaluation.protocols import (
    PROTOCOLS,
    QUALITIES,
    RESAVED,
    SAVED_ONCE,
    TITLES,
    Condition,
    _qualities,
    compress,
    conditions,
    model_crop,
    parse_protocols,
)
from afd_serve.models.backbones import Preprocessing

PREPROCESSING = Preprocessing(64, 0.875, "bicubic", (127.0,) * 3, (128.0,) * 3)


def picture(mode: str = "RGB", size: tuple[int, int] = (150, 100)) -> Image.Image:
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    rgb = np.stack([x * 255 // size[0], y * 255 // size[1], (x * y) % 256], axis=-1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def compressed(data: bytes, condition: Condition, picture_id: str = "a", seed: int = 0) -> bytes:
    return compress(data, condition, PREPROCESSING, picture_id=picture_id, seed=seed)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_parse_protocols_puts_clean_first() -> None:
    assert parse_protocols("A") == ("clean", "A")
    assert parse_protocols(" b, a,clean,A") == ("clean", "B", "A")
    assert parse_protocols("clean") == ("clean",)
    for wrong in ("", "D", "A,X", ","):
        with pytest.raises(ConfigError, match="clean, A, B, C, resave, webp, avif"):
            parse_protocols(wrong)


def test_conditions() -> None:
    keys = [condition.key for condition in conditions(PROTOCOLS)]
    assert keys[:7] == ["clean", "A/25", "A/18", "A/15", "A/10", "A/7", "B/25"]
    assert keys[11:16] == ["C/2", "C/3", "C/4", "C/5", "resave"]
    assert {c.protocol for c in conditions(PROTOCOLS) if c.crop} == {"clean", "B"}
    assert len({c.title for c in conditions(["C", "A", "resave"])}) == 10
    assert set(TITLES) == set(PROTOCOLS)


def test_clean_is_the_file_itself() -> None:
    data = file_of(picture())
    assert compressed(data, Condition("clean")) is data


@pytest.mark.parametrize("quality", QUALITIES)
def test_protocol_a_is_the_models_crop_saved_by_pillow(quality: int) -> None:
    data = file_of(picture())
    file = compressed(data, Condition("A", quality))
    assert file == file_of(Image.fromarray(model_crop(data, PREPROCESSING)), "JPEG", quality=quality)
    assert opened(file).size == (64, 64)
    assert opened(file).layer[0][1:3] == (2, 2)  # 4:2:0


def test_protocol_b_keeps_size_and_grayscale() -> None:
    assert compressed(file_of(picture()), Condition("B", 10)) == file_of(picture(), "JPEG", quality=10)
    gray = opened(compressed(file_of(picture("L")), Condition("B", 10)))
    assert (gray.mode, gray.size) == ("L", (150, 100))
    assert opened(compressed(file_of(picture("RGBA")), Condition("B", 10))).mode == "RGB"


def test_16_bits_per_sample_are_scaled_and_not_clipped() -> None:
    grey = np.asarray(picture("L"))
    deep, usual = file_of(Image.fromarray(grey.astype(np.uint16) * 257)), file_of(picture("L").convert("RGB"))
    assert opened(deep).mode == "I;16"
    assert np.array_equal(model_crop(deep, PREPROCESSING), model_crop(usual, PREPROCESSING))
    assert compressed(deep, Condition("B", 25)) == compressed(usual, Condition("B", 25))


def test_orientation_is_applied_before_it_is_lost() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = file_of(picture().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    upright = file_of(picture(), "PNG")
    for condition in (Condition("A", 10), Condition("B", 10)):
        assert compressed(turned, condition) == compressed(upright, condition)


def test_protocol_c_is_fixed_by_picture_and_seed() -> None:
    data = file_of(picture())
    first = compressed(data, Condition("C", 5))
    assert first == compressed(data, Condition("C", 5))
    others = [
        compressed(data, Condition("C", 5), picture_id="b"),
        compressed(data, Condition("C", 5), seed=1),
        compressed(data, Condition("C", 4)),
    ]
    assert first not in others


def test_what_protocol_c_draws_stays_as_it_is_and_any_file_name_will_do() -> None:
    drawn = {name: _qualities(Condition("C", 5), name, seed=3) for name in ("a", "\u00f6/1 \U0001f600.png")}
    assert list(drawn.values()) == [(7, 15, 15, 25, 15), (10, 15, 18, 10, 15)]
    as_posix_has_it = "\u00f6/1 \U0001f600.png".encode().decode("ascii", "surrogateescape")
    assert _qualities(Condition("C", 5), as_posix_has_it, seed=3) == (10, 15, 18, 10, 15)
    assert len(_qualities(Condition("C", 5), os.fsdecode(b"\xff.png"), seed=3)) == 5


def test_protocol_c_compresses_as_often_as_it_says() -> None:
    data = file_of(picture())
    file = compressed(data, Condition("C", 2))
    images = [Image.fromarray(model_crop(data, PREPROCESSING))]
    candidates = []
    for first in QUALITIES:
        once = opened(file_of(images[0], "JPEG", quality=first))
        candidates += [file_of(once, "JPEG", quality=second) for second in QUALITIES]
    assert file in candidates


def test_protocol_c_draws_each_quality_anew() -> None:
    drawn = {
        level: [_qualities(Condition("C", level), str(index), seed=0) for index in range(40)] for level in (2, 3, 4, 5)
    }
    for level, lists in drawn.items():
        assert {len(qualities) for qualities in lists} == {level}
        assert {quality for qualities in lists for quality in qualities} == set(QUALITIES)
        assert any(len(set(qualities)) < level for qualities in lists), "one may come twice"
    assert [qualities[:2] for qualities in drawn[5]] != drawn[2], "C/5 does not begin as C/2"


def test_titles_say_what_was_done() -> None:
    titled = {"clean": "as it is", "A/10": "QF 10", "C/3": "3 times", "resave": "10 then 95"}
    assert {c.key: c.title for c in conditions(PROTOCOLS) if c.key in titled} == titled
    assert (RESAVED.key, SAVED_ONCE.key) == ("resave", "A/10")


def test_resave_hides_the_first_table() -> None:
    data = file_of(picture())
    once = opened(compressed(data, Condition("A", 10)))
    assert compressed(data, Condition("resave")) == file_of(once, "JPEG", quality=95)


@pytest.mark.parametrize("codec", ["webp", "avif"])
def test_other_codecs_save_the_models_crop_at_three_falling_qualities(codec: str) -> None:
    if codec not in features.get_supported_modules():
        pytest.skip(f"this Pillow cannot write {codec}")
    assert parse_protocols(codec.upper()) == ("clean", codec)
    wanted = conditions([codec])
    levels = [condition.level for condition in wanted]
    assert levels == sorted(set(levels), reverse=True)
    assert len(levels) == 3
    assert wanted[0].title == f"quality {levels[0]}"
    data = file_of(picture())
    crop = model_crop(data, PREPROCESSING)
    files = [compressed(data, condition) for condition in wanted]
    assert files[0] == file_of(Image.fromarray(crop), codec.upper(), quality=levels[0])
    assert (opened(files[0]).format, opened(files[0]).size) == (codec.upper(), (64, 64))
    errors = [np.abs(np.asarray(opened(file).convert("RGB")).astype(int) - crop).mean() for file in files]
    assert 0 < errors[0] < errors[2]


def test_a_codec_that_pillow_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "get_supported_modules", lambda: ["webp"])
    assert parse_protocols("webp") == ("clean", "webp")
    with pytest.raises(ConfigError, match=r"avif needs a Pillow that writes AVIF .*11\.3"):
        parse_protocols("A,avif")
