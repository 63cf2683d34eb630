"""Limits on JPEGs that are written in two languages; the tests of the codec alone (test_jpeg*) run without sources."""

import dataclasses
import re
from pathlib import Path

from afd_serve import jpeg


def test_those_of_what_does_not_come_from_python_are_the_same() -> None:
    header = (Path(__file__).parent.parent / "csrc" / "limits.h").read_text()
    native = re.search(r"Limits kDefaultLimits\{(.*)\};", header)
    assert native is not None
    values = tuple(float(number) for number in native[1].replace("'", "").split(","))
    of_jpegs = dataclasses.asdict(jpeg.DEFAULT_LIMITS)
    del of_jpegs["max_other_pixels"]
    assert values == tuple(of_jpegs.values())
