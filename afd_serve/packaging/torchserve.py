"""The TorchServe model archive (``.mar``): exported classifier, handler and settings in one file."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from afd_serve.errors import DependencyError, PackagingError
from afd_serve.export import export_classifier, exported_files

__all__ = ["handlers_dir", "package_torchserve"]

_MANIFEST: Final = "MAR-INF/MANIFEST.json"
# The earliest time that a ZIP archive can hold: archives of equal content are then equal byte for byte.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def handlers_dir() -> Path:
    """The folder with the handler and its settings: inside an installed package, beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for parent in (package, package.parent):
        if (parent / "handlers" / "afd_handler.py").is_file():
            return parent / "handlers"
    raise PackagingError(f"the TorchServe handler is missing from the installation in {package}")


def package_torchserve(source: str | Path, out_dir: Path, *, name: str = "afd", version: str = "1.0") -> Path:
    """Build a model archive that TorchServe can load.

    Args:
        source: A shipped name, a run's directory, or the directory of an exported model; what is not exported yet, is
            exported first.
        out_dir: The model store; made when missing. An archive of the same name there is replaced.
        name: The model's name in URLs, and the archive's file name.
        version: The model's version.

    Returns:
        The path of the archive. The same exported model gives the same bytes; exporting anew need not.

    Raises:
        DependencyError: ``torch-model-archiver`` is not installed.
        PackagingError: The archiver refused, with its own words, or something cannot be written; an archive that was
            there is then still there.
        ExportError: The export failed its check.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="afd-mar-") as scratch:
        exported, built = Path(scratch) / "exported", Path(scratch) / "built"
        files = _export(source, exported)
        _run_archiver(files, built, name, version)
        return _rewrite(built / f"{name}.mar", out_dir / f"{name}.mar")


def _export(source: str | Path, out: Path) -> list[Path]:
    """Copies of an exported model's files, the signature last."""
    files = exported_files(source)
    if files is None:
        exported = export_classifier(source, out)
        return [exported.folder / name for name in exported_files(exported.folder) or ()]
    # A copy, because the archiver gives commas and wildcards in paths a meaning.
    try:
        out.mkdir()
        return [shutil.copyfile(Path(source) / name, out / name) for name in files]
    except OSError as error:
        raise PackagingError(f"the exported model cannot be copied to {out}: {error}") from error


def _run_archiver(files: list[Path], out: Path, name: str, version: str) -> None:
    handlers = handlers_dir()
    # The archiver works in <temporary folder>/<model name> and deletes what lies there: give it a folder of its own.
    work = out / "work"
    work.mkdir(parents=True)
    arguments = {
        "--model-name": name,
        "--version": version,
        "--serialized-file": files[0],
        "--extra-files": ",".join(map(str, files[1:])),
        "--handler": handlers / "afd_handler.py",
        "--config-file": handlers / "model-config.yaml",
        "--export-path": out,
        "--archive-format": "zip-store",
    }
    command = [sys.executable, "-m", "model_archiver.model_packaging"]
    command += [str(word) for pair in arguments.items() for word in pair]
    environment = os.environ | {"TMPDIR": str(work)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "No module named" in done.stderr and "model_archiver" in done.stderr:
        raise DependencyError("packaging needs torch-model-archiver: pip install 'afd-serve[torchserve]'")
    if done.returncode != 0:
        raise PackagingError(f"torch-model-archiver failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def _rewrite(built: Path, target: Path) -> Path:
    """Copy the archive with its entries sorted and without times, then put it in place in one step."""
    partial = target.with_suffix(".mar.partial")
    try:
        with zipfile.ZipFile(built) as old, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as new:
            for entry in sorted(old.namelist()):
                data = old.read(entry)
                new.writestr(zipfile.ZipInfo(entry, _EPOCH), _without_time(data) if entry == _MANIFEST else data)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PackagingError(f"the archive cannot be written to {target}: {error}") from error
    return target


def _without_time(manifest: bytes) -> bytes:
    content = json.loads(manifest)
    content.pop("createdOn", None)
    return json.dumps(content, indent=2, sort_keys=True).encode()
