"""Labelled sets: a folder per class, or a CSV file."""

import csv
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from afd_serve.errors import ConfigError
from afd_serve.labels import imagenet_labels, label_key, label_lookup
from afd_serve.picture_files import files_below
from afd_serve.preprocess import PICTURE_SUFFIXES

__all__ = ["LabelledPicture", "load_labelled"]

_MOST_DIGITS = 18
"""Of an index; Python itself refuses to read numbers of thousands."""

_NEAR = 3
"""How many classes with names like an unknown one are told."""


@dataclass(frozen=True)
class LabelledPicture:
    """A picture's file and its class; ``id`` is its path inside the set, with forward slashes."""

    id: str
    path: Path
    label: int

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            OSError: it cannot be read, or is no regular file: a pipe would be waited for.
        """
        if self.path.exists() and not self.path.is_file():
            raise OSError(f"{str(self.path)!r} is no regular file")
        return self.path.read_bytes()


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
        raise ConfigError(f"{source} has no labelled pictures{_where_they_belong(source, split)}")
    pictures.sort(key=lambda picture: picture.id)
    if limit is None or limit >= len(pictures):
        return pictures
    chosen = np.linspace(0, len(pictures), limit, endpoint=False).astype(int)
    return [pictures[index] for index in chosen]


def _where_they_belong(source: Path, split: str | None) -> str:
    """What to do about a set that is empty."""
    if source.is_file():
        return f" in split {split!r}" if split else ""
    kinds = "a folder per class, or a CSV file with columns file and label"
    if any(_is_picture(path) for path in source.iterdir()):
        return f": those in it are in no class's folder; what is taken is {kinds}"
    return f"; what is taken is {kinds}"


class _Classes:
    """From the ways to write a class to its index."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels, self._lookup = tuple(labels), label_lookup(labels)
        # Where "1", "10", "2" are names, as a sorted list of folders gives them, a number can be no index as well.
        self._numbers_are_names = any(label.isdecimal() for label in labels)

    def index(self, text: str, where: str) -> int:
        name = text.strip()
        is_index = name.isdecimal() and len(name) <= _MOST_DIGITS and not self._numbers_are_names
        index = int(name) if is_index else self._lookup.get(label_key(name), -1)
        if not 0 <= index < len(self._labels):
            raise ConfigError(f"{where}: {text!r} is {self._what_it_is(label_key(name))}; {self._taken()}")
        return index

    def _what_it_is(self, key: str) -> str:
        """What is wrong with a name, and which ones may have been meant."""
        names = {label: label_key(label) for label in self._labels}
        if key in names.values():
            return "the name of several classes"
        wrong = f"none of the classifier's {len(self._labels)} classes"
        longer = [label for label, other in names.items() if key and other.startswith(key)]
        alike = difflib.get_close_matches(key, names.values(), _NEAR)
        near = longer or [label for label, other in names.items() if other in alike]
        return wrong + (f"; names like it: {', '.join(map(repr, near[:_NEAR]))}" if near else "")

    def _taken(self) -> str:
        """The ways to write a class."""
        ways = ["names"]
        if self._labels == imagenet_labels():
            ways.append("WordNet ids")
        if not self._numbers_are_names:
            ways.append("indices")
        return f"what is taken: {', '.join(ways)}"


def _from_folders(root: Path, classes: _Classes) -> Iterator[LabelledPicture]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        files = [path for path in files_below(folder, without=[root]) if _is_picture(path)]
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
        hint = "; columns are separated by commas" if any(sign in name for name in columns for sign in ";\t") else ""
        raise ConfigError(f"{path} has no column {', '.join(sorted(missing))}; it has {found}{hint}")


def _from_row(row: dict[str, str], classes: _Classes, path: Path, where: str) -> LabelledPicture:
    if not row["file"]:
        raise ConfigError(f"{where}, names no file")
    return LabelledPicture(Path(row["file"]).as_posix(), path.parent / row["file"], classes.index(row["label"], where))
