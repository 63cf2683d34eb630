"""Telling whether what runs is still what its sources say."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

import afd_serve

__all__ = ["fingerprint_of"]


def fingerprint_of(source: str | Path, templates: Path, settings: str) -> str:
    """A digest of everything that a server is made of: the package, its templates, the model's source, settings."""
    digest = hashlib.sha256(f"{torch.__version__}|{settings}".encode())
    folders = {Path(afd_serve.__file__).parent, templates} | ({Path(source)} if Path(source).is_dir() else set())
    for path in sorted(file for folder in folders for file in _files(folder)):
        digest.update(str(path).encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
