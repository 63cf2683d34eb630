"""What the texts of reports have in common: counts, and names that keep to their line."""

import unicodedata
from typing import Final

__all__ = ["counted", "left_out", "printable"]

_ESCAPED: Final = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's categories of control characters, of halves of a character, and of what ends a line or a paragraph."""


def counted(count: int, noun: str) -> str:
    """A number and what it counts, e.g. ``"1 picture"`` or ``"3 pictures"``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def left_out(count: int) -> str:
    """What follows the number of pictures where some could not be read; nothing where all could."""
    if not count:
        return ""
    return f"; {count} could not be read and {'is' if count == 1 else 'are'} left out"


def printable(text: str) -> str:
    """Escape what breaks a line or is no character, as names of files and classes may have it."""
    return "".join(sign if unicodedata.category(sign) not in _ESCAPED else _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
