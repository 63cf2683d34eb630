"""Telling whether what runs is still what its sources say."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

import afd_serve
from afd_serve.checkpoint import find_weights, read_config
from afd_serve.errors import CheckpointError
from afd_serve.models.backbones import own_file

__all__ = ["fingerprint_of"]


def fingerprint_of(source: str | Path, templates: Path, settings: str) -> str:
    """A digest of everything that a server is made of: the package, its templates, the model's source, settings.

    The source is all that lies in its folder, or the weights' file where one is named, and the user's own file of the
    backbone. What Python that file imports, nobody knows before it runs.
    """
    digest = hashlib.sha256(f"{torch.__version__}|{settings}".encode(errors="surrogateescape"))
    folders = {Path(afd_serve.__file__).parent, templates} | ({Path(source)} if Path(source).is_dir() else set())
    files = {file for folder in folders for file in _files(folder)} | set(_own_files(source))
    for path in sorted(files):
        digest.update(os.fsencode(path))
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _own_files(source: str | Path) -> list[Path]:
    """The weights and, where the backbone is one of the user's own, its file; none where the source is exported."""
    try:
        weights = find_weights(source)
        backbone = own_file(read_config(weights).backbone)
    except CheckpointError:
        return [Path(source)] if Path(source).is_file() else []  # who packages it says what is wrong with it
    return [weights, backbone] if backbone is not None else [weights]
