"""Class names: the 1000 ImageNet classes in their usual order, and the lookup from a folder's name to a class."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib import resources

__all__ = ["imagenet_labels", "imagenet_wnids", "label_key", "label_lookup"]


@cache
def _imagenet_rows() -> tuple[tuple[str, str], ...]:
    text = (resources.files("afd_serve") / "data" / "imagenet_classes.txt").read_text(encoding="utf-8")
    rows = (line.split("\t") for line in text.splitlines())
    return tuple((wnid, name) for wnid, name in rows)


def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 class names, unique without regard to case, e.g. ``"great white shark"`` at index 2."""
    return tuple(name for _, name in _imagenet_rows())


def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1000 WordNet identifiers, e.g. ``"n01484850"`` at index 2.

    Source: ILSVRC 2012, whose classes are sorted by this identifier.
    """
    return tuple(wnid for wnid, _ in _imagenet_rows())


def label_key(name: str) -> str:
    """Return what all ways to write a class's name have in common.

    Case is folded, spaces stand for underscores, and letters are composed with their accents, which macOS keeps apart
    in the names of files.
    """
    return unicodedata.normalize("NFC", name.casefold().replace("_", " "))


def label_lookup(labels: Sequence[str]) -> dict[str, int]:
    """Map every way to write a class (its name, its wnid if the labels are ImageNet's) to its index.

    Keys are what `label_key` makes of them; a name that two classes share is left out, so that it fails instead of
    choosing one of them.
    """
    table: dict[str, int] = {}
    shared: set[str] = set()
    for index, label in enumerate(labels):
        key = label_key(label)
        if table.setdefault(key, index) != index:
            shared.add(key)
    if tuple(labels) == imagenet_labels():
        table.update({wnid: index for index, wnid in enumerate(imagenet_wnids())})
    return {key: index for key, index in table.items() if key not in shared}
