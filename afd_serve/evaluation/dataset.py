"""Labelled sets: a folder per class, or a CSV file."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afd_serve.errors import ConfigError
from afd_serve.labels import label_key, label_lookup
from afd_serve.preprocess import PICTURE_SUFFIXES

__all__ = ["LabelledPicture", "load_labelled"]

_MOST_DIGITS = 18
"""Of an index; Python itself refuses to read numbers of thousands."""


@dataclass(frozen=True)
class LabelledPicture:
    """A picture's file and its class; ``id`` is its path inside the set, with forward slashes."""

    id: str
    path: Path
    label: int


def load_labelled(
    source: Path, labels: Sequence[str], *, split: str | None = None, limit: int | None = None
) -> list[LabelledPicture]:
    """List a labelled set, sorted by id.

    Args:
        source: a folder with one subfolder per class, or a CSV file with columns ``file`` (relative to the CSV),
            ``label`` and, if ``split`` is given, ``split``. A class is written as its name, for ImageNet's labels as
            its wnid or, unless classes have numbers for names, as its index.
        labels: the classifier's classes.
        split: keep the rows of this split only.
        limit: keep at most so many, spread evenly over the sorted set.

    Raises:
        ConfigError: the set is missing, empty, or has a class or column that is not understood.
    """
    classes = _Classes(labels)
    if source.is_dir():
        if split is not None:
            raise ConfigError("a split can only be chosen from a CSV file with a column of that name")
        pictures = list(_from_folders(source, classes))
    elif source.is_file():
        pictures = list(_from_csv(source, split, classes))
    else:
        raise ConfigError(f"{source} is neither a folder nor a CSV file")
    if not pictures:
        raise ConfigError(f"{source} has no labelled pictures" + (f" in split {split!r}" if split else ""))
    pictures.sort(key=lambda picture: picture.id)
    if limit is None or limit >= len(pictures):
        return pictures
    chosen = np.linspace(0, len(pictures), limit, endpoint=False).astype(int)
    return [pictures[index] for index in chosen]


class _Classes:
    """From the ways to write a class to its index."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._count, self._lookup = len(labels), label_lookup(labels)
        # Where "1", "10", "2" are names, as a sorted list of folders gives them, a number can be no index as well.
        self._numbers_are_names = any(label.isdecimal() for label in labels)

    def index(self, text: str, where: str) -> int:
        name = text.strip()
        is_index = name.isdecimal() and len(name) <= _MOST_DIGITS and not self._numbers_are_names
        index = int(name) if is_index else self._lookup.get(label_key(name), -1)
        if not 0 <= index < self._count:
            raise ConfigError(f"{where}: {text!r} is none of the classifier's {self._count} classes")
        return index


def _from_folders(root: Path, classes: _Classes) -> Iterator[LabelledPicture]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = [path for path in sorted(folder.rglob("*")) if _is_picture(path)]
        if not files:
            continue
        label = classes.index(folder.name, str(folder))
        for path in files:
            yield LabelledPicture(path.relative_to(root).as_posix(), path, label)


def _is_picture(path: Path) -> bool:
    """Whether this is a picture, or a link to one that is missing, which is reported; a pipe would be waited for."""
    return path.suffix.lower() in PICTURE_SUFFIXES and (path.is_file() or not path.exists())


def _from_csv(path: Path, split: str | None, classes: _Classes) -> Iterator[LabelledPicture]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            _check_columns(path, reader.fieldnames or (), split)
            known: set[str] = set()
            for row in reader:
                if split is None or row["split"] == split:
                    picture = _from_row(row, classes, path, f"{path}, line {reader.line_num}")
                    if picture.id in known:
                        raise ConfigError(f"{path}, line {reader.line_num}, names {picture.id} a second time")
                    known.add(picture.id)
                    yield picture
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no CSV file: {error}") from error


def _check_columns(path: Path, columns: Sequence[str], split: str | None) -> None:
    wanted = {"file", "label"} | ({"split"} if split is not None else set())
    missing = wanted - set(columns)
    if missing:
        found = ", ".join(map(repr, columns)) or "none"
        raise ConfigError(f"{path} has no column {', '.join(sorted(missing))}; it has {found}")


def _from_row(row: dict[str, str], classes: _Classes, path: Path, where: str) -> LabelledPicture:
    if not row["file"]:
        raise ConfigError(f"{where}, names no file")
    return LabelledPicture(Path(row["file"]).as_posix(), path.parent / row["file"], classes.index(row["label"], where))
