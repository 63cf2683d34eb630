"""What a comparison was made of, so that rows of other pictures are not joined with it."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from afd_serve.evaluation.dataset import LabelledPicture

__all__ = ["Contents"]


@dataclass(frozen=True)
class Contents:
    """What a configuration's names stand for, which may change while the names stay as they are.

    Attributes:
        fingerprint: of the backbone.
        fitting_pictures: digest of the names, relative to their folder, and sizes of the unlabelled pictures.
        labelled_pictures: digest of the names, sizes and classes of the labelled pictures.
    """

    fingerprint: str
    fitting_pictures: str
    labelled_pictures: str

    @classmethod
    def of(
        cls,
        fingerprint: str,
        unlabelled: Sequence[Path],
        folders: Sequence[Path],
        labelled: Sequence[LabelledPicture],
    ) -> "Contents":
        """Those of a comparison; ``folders`` are what the unlabelled pictures' names are relative to."""
        roots = [folder.resolve() for folder in folders]
        return cls(
            fingerprint,
            _digest((_name(path, roots), _size(path)) for path in unlabelled),
            _digest((picture.id, _size(picture.path), picture.label) for picture in labelled),
        )


def _name(path: Path, roots: Sequence[Path]) -> str:
    """A picture's name inside the first of the folders that holds it; its own where a link leads out of them all."""
    inside = (path.relative_to(root).as_posix() for root in roots if root != path and path.is_relative_to(root))
    return next(inside, path.name)


def _size(path: Path) -> int:
    """Bytes; -1 for a labelled picture that is missing, which is no error but a picture that cannot be read."""
    return path.stat().st_size if path.exists() else -1


def _digest(pictures: Iterable[tuple[object, ...]]) -> str:
    """Of a set of pictures, whatever their order."""
    return hashlib.sha256(json.dumps(sorted(pictures)).encode()).hexdigest()
