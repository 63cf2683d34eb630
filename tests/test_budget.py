"""What the pictures of one request may cost together."""

import numpy as np
import pytest
from PIL import Image

from afd_serve import budget
from afd_serve.budget import MAX_OTHER_PIXELS_PER_REQUEST, within_budget
from afd_serve.jpeg_types import JpegLimits
from afd_serve.other_formats import decode
from afd_serve.request import MAX_PICTURES
from afd_serve.results import Failure
from tests.conftest import encoded, scene
from tests.other_files import bmp_rle, png_of

SIDE = 4096
LARGE = png_of(SIDE, SIDE)
ROOM = MAX_OTHER_PIXELS_PER_REQUEST // SIDE**2
FAILURE = Failure("bad_base64", "?")


def refused(pictures: list[bytes | Failure]) -> list[int]:
    """Which pictures there is no room for; all else is left as it is."""
    kept = within_budget(pictures)
    beyond = [index for index, (kept_, picture) in enumerate(zip(kept, pictures, strict=True)) if kept_ is not picture]
    for index in beyond:
        failure = kept[index]
        assert isinstance(failure, Failure)
        assert failure.code == "crowded_out"
        assert f"{MAX_OTHER_PIXELS_PER_REQUEST} together; send it in a request of its own" in failure.reason
    return beyond


def test_pictures_beyond_the_budget_are_refused_and_those_before_them_are_not() -> None:
    assert refused([LARGE] * MAX_PICTURES) == list(range(ROOM, MAX_PICTURES))


def test_what_finds_room_after_one_that_does_not_is_answered() -> None:
    small = encoded(scene(), "PNG")
    assert refused([LARGE] * (ROOM + 1) + [small]) == [ROOM]


def test_jpegs_and_what_fails_for_a_reason_of_its_own_take_no_room() -> None:
    free = [encoded(scene()), FAILURE, b"no picture", b"", bmp_rle(6000, 4000), png_of(6000, 6000)]
    assert refused([*free * 5, *[LARGE] * ROOM]) == []
    assert refused([*free * 4, *[LARGE] * (ROOM + 1)]) == [4 * len(free) + ROOM]


def test_nothing_is_decoded_to_know_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    assert len(refused([LARGE] * MAX_PICTURES)) == MAX_PICTURES - ROOM


def test_few_pictures_that_cannot_pass_the_budget_are_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "pixels_to_decode", lambda *_: pytest.fail("opened"))
    assert within_budget([LARGE, LARGE]) == [LARGE, LARGE]


def test_the_limits_on_one_picture_say_what_is_refused_anyway() -> None:
    assert within_budget([LARGE] * 8, JpegLimits(max_other_pixels=10_000_000)) == [LARGE] * 8


def test_the_budget_holds_every_single_picture() -> None:
    assert JpegLimits().max_other_pixels <= MAX_OTHER_PIXELS_PER_REQUEST
    pixels = decode(png_of(5000, 5000), JpegLimits())
    assert pixels.shape == (5000, 5000, 3)
    assert not np.any(pixels)
