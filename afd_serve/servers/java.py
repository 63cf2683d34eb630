"""The Java runtime that TorchServe needs."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from afd_serve.errors import DependencyError

__all__ = ["Java", "find_java"]

_OLDEST: Final = 11
_PATIENCE: Final = 60.0
"""Seconds for a program that says its version; a busy machine takes some."""


@dataclass(frozen=True)
class Java:
    """A runtime: its program and its major version."""

    path: Path
    version: int


def find_java() -> Java:
    """A Java runtime that is new enough, found as TorchServe would find it.

    Raises:
        DependencyError: There is none; the message says what to do.
    """
    advice = f"TorchServe needs a Java runtime ({_OLDEST} or newer); on Debian: apt-get install openjdk-17-jre-headless"
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    if found is None and home:
        raise DependencyError(f"JAVA_HOME is {home}, which has no bin/java: unset or correct it")
    if found is None:
        raise DependencyError(advice)
    try:
        said = subprocess.run(
            [found, "-version"], capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DependencyError(f"{advice}; {found} cannot be asked for its version: {error}") from error
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version.group(1)) < _OLDEST:
        raise DependencyError(f"{advice}; {found} says {said.strip()!r}")
    return Java(Path(found), int(version.group(1)))
