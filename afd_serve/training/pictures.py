"""Which pictures a fit sees, and whether they are the same as before."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from afd_serve.errors import ConfigError
from afd_serve.picture_files import digest_of, file_size, files_below
from afd_serve.preprocess import PICTURE_SUFFIXES

__all__ = ["find_pictures", "pictures_digest"]


def find_pictures(folders: Sequence[Path], exclude: Sequence[Path] = ()) -> list[Path]:
    """All pictures below the folders (a file stands for itself), sorted, without those below ``exclude``.

    Links are followed. What is no regular file, as a pipe, is no picture.

    Raises:
        ConfigError: A folder does not exist, or there are fewer than two pictures.
    """
    excluded = _pictures_below(exclude)
    pictures = sorted(path for path in _pictures_below(folders) if path not in excluded)
    if len(pictures) < 2:
        where = ", ".join(map(str, folders))
        raise ConfigError(f"fitting needs at least two pictures; {where} hold {len(pictures) or 'none'}")
    return pictures


def _pictures_below(folders: Sequence[Path]) -> set[Path]:
    found: set[Path] = set()
    for folder in folders:
        if not folder.exists():
            raise ConfigError(f"{folder} does not exist")
        files = [folder] if folder.is_file() else files_below(folder)
        found.update(path.resolve() for path in files if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    return found


def pictures_digest(pictures: Iterable[Path], folders: Sequence[Path]) -> str:
    """Digest of the names, relative to the first of the folders that holds them, and sizes of unlabelled pictures."""
    roots = [folder.resolve() for folder in folders]
    return digest_of((_name(path, roots), file_size(path)) for path in pictures)


def _name(path: Path, roots: Sequence[Path]) -> str:
    """A picture's name inside the first of the folders that holds it; its own where a link leads out of them all."""
    inside = (path.relative_to(root).as_posix() for root in roots if root != path and path.is_relative_to(root))
    return next(inside, path.name)
