"""Builds the extension with CMake; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
COMPILERS = ("c++", "g++", "clang++")
NO_COMPILER = (
    "afd-serve builds a C++17 extension, and no compiler was found. Install one:\n"
    "  Debian, Ubuntu:  apt-get install g++\n"
    "  Fedora, RHEL:    dnf install gcc-c++\n"
    "  macOS:           xcode-select --install\n"
    "or name one in the environment variable CXX."
)


def check_tools() -> None:
    """Exits with advice where Python would only say that there is no such file, or CMake that it has no compiler."""
    if shutil.which("cmake") is None:
        sys.exit("afd-serve is built with CMake: pip install cmake ninja, or build without --no-build-isolation.")
    named = os.environ.get("CXX")
    candidates = (named.split()[0],) if named else COMPILERS
    if not any(shutil.which(candidate) for candidate in candidates):
        sys.exit(NO_COMPILER)


class CMakeBuild(build_ext):
    """Runs CMake for the one extension of the package."""

    def build_extension(self, ext: Extension) -> None:
        check_tools()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        configure = [
            "cmake",
            "-G",
            "Ninja",
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DAFD_WERROR={'ON' if os.environ.get('AFD_WERROR') else 'OFF'}",
        ]
        # A build before this one may have had an environment of its own, whose Ninja is gone.
        ninja = shutil.which("ninja")
        configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        for command in (configure, ["cmake", "--build", str(build)]):
            completed = subprocess.run(command, check=False)
            if completed.returncode != 0:
                sys.exit(f"Building the extension failed (see the messages above): {' '.join(command[:2])}")


setup(
    ext_modules=[Extension("afd_serve._jpeg", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    # What the servers run lies in folders of its own, where operators look for it; in the package it is here.
    packages=[*find_packages(include=["afd_serve*"]), "afd_serve.handlers", "afd_serve.model_repository"],
    package_dir={"afd_serve.handlers": "handlers", "afd_serve.model_repository": "model_repository"},
)
