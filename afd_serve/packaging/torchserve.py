"""The TorchServe model archive (``.mar``): exported classifier, handler, settings and a seal in one file.

Note [Exporting in a process of its own]
    TorchScript numbers the types that it compiles, over all that a process has compiled before, and writes the numbers
    into its files. Only the first export of a process gives the same bytes every time.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from afd_serve.checkpoint import find_weights
from afd_serve.errors import DependencyError, ExportError, PackagingError
from afd_serve.exported import exported_files
from afd_serve.mode import Mode
from afd_serve.packaging.handlers import handlers_dir
from afd_serve.packaging.seal import HANDLER_NAME, MANIFEST_NAME, SEAL_NAME, make_seal
from afd_serve.runs import write_atomically

__all__ = ["package_torchserve"]

_CONFIG: Final = "model-config.yaml"
_DEFAULT_MODE: Final = f'mode: "{Mode.PROTECT.value}"'
# The earliest time that a ZIP archive can hold: archives of equal content are then equal byte for byte.
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)


def package_torchserve(
    source: str | Path, out_dir: Path, *, name: str = "afd", version: str = "1.0", mode: Mode = Mode.PROTECT
) -> Path:
    """Build a model archive that TorchServe can load.

    Args:
        source: A shipped name, a run's directory, or the directory of an exported model; what is not exported yet, is
            exported first.
        out_dir: The model store; made when missing. An archive of the same name there is replaced.
        name: The model's name in URLs, and the archive's file name.
        version: The model's version.
        mode: For requests that name none.

    Returns:
        The path of the archive. The same source gives the same bytes, with the same version of torch on the same kind
        of processor.

    Raises:
        DependencyError: ``torch-model-archiver`` is not installed.
        PackagingError: The archiver refused, with its own words, or something cannot be written; an archive that was
            there is then still there.
        CheckpointError: There is no such source.
        ExportError: The export failed, with its own words.
    """
    with tempfile.TemporaryDirectory(prefix="afd-mar-") as scratch:
        exported, built = Path(scratch) / "exported", Path(scratch) / "built"
        files = _export(source, exported)
        _write_config(exported / _CONFIG, mode)
        _run_archiver(files, exported / _CONFIG, built, name, version)
        return _rewrite(built / f"{name}.mar", out_dir / f"{name}.mar")


def _export(source: str | Path, out: Path) -> list[Path]:
    """Copies of an exported model's files, the classifier's first."""
    files = exported_files(source)
    if files is None:
        _export_elsewhere(source, out)
        return [out / name for name in exported_files(out) or ()]
    # A copy, because the archiver gives commas and wildcards in paths a meaning.
    try:
        out.mkdir()
        return [shutil.copyfile(Path(source) / name, out / name) for name in files]
    except OSError as error:
        raise PackagingError(f"the exported model cannot be copied to {out}: {error}") from error


def _export_elsewhere(source: str | Path, out: Path) -> None:
    # See Note [Exporting in a process of its own].
    find_weights(source)
    command = [sys.executable, "-P", "-c", "from afd_serve.cli import main; main()", "export"]
    command += ["--model", str(source), "--out", str(out)]
    done = _run(command)
    if done.returncode != 0:
        raise ExportError(f"{source} cannot be exported: {done.stderr.strip()[-2000:]}")


def _run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Let another process do its work; where this one is interrupted, the other ends before its folder is removed.

    `subprocess.run` would kill it as well, but not wait for its end.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, stdout=pipe, stderr=pipe, encoding="utf-8", errors="replace"
    ) as process:
        try:
            out, err = process.communicate()
        finally:
            process.kill()
            process.wait()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _write_config(target: Path, mode: Mode) -> None:
    """The handler's settings with this mode; in their own words, because operators read the comments."""
    text = (handlers_dir() / _CONFIG).read_text(encoding="utf-8")
    if text.count(_DEFAULT_MODE) != 1:
        raise PackagingError(f"{handlers_dir() / _CONFIG} has no line {_DEFAULT_MODE}")
    target.write_text(text.replace(_DEFAULT_MODE, f'mode: "{mode.value}"'), encoding="utf-8")


def _run_archiver(files: list[Path], config: Path, out: Path, name: str, version: str) -> None:
    # The archiver works in <temporary folder>/<model name> and deletes what lies there: give it a folder of its own.
    out.mkdir()
    arguments = {
        "--model-name": name,
        "--version": version,
        "--serialized-file": files[0],
        "--extra-files": ",".join(map(str, files[1:])),
        "--handler": handlers_dir() / HANDLER_NAME,
        "--config-file": config,
        "--export-path": out,
        "--archive-format": "zip-store",
    }
    command = [sys.executable, "-P", "-m", "model_archiver.model_packaging"]
    command += [str(word) for pair in arguments.items() for word in pair]
    done = _run(command, os.environ | {"TMPDIR": str(out)})
    if "No module named" in done.stderr and "model_archiver" in done.stderr:
        raise DependencyError("packaging needs torch-model-archiver: pip install 'afd-serve[torchserve]'")
    if done.returncode != 0:
        raise PackagingError(f"torch-model-archiver failed: {_error_in(done.stderr or done.stdout)}")


def _error_in(output: str) -> str:
    """What comes behind a traceback, if there is one, in one line; the archiver's own errors without their name."""
    raised = list(re.finditer(r"^[\w.]+(?:Error|Exception): ", output, re.MULTILINE))
    words = output[raised[-1].start() :] if raised else output
    return " ".join(words.rpartition("ModelArchiverError: ")[2].split())[-2000:]


def _rewrite(built: Path, target: Path) -> Path:
    """Copy the archive with its entries sorted, sealed and without times, then put it in place in one step."""

    def write(partial: Path) -> None:
        with zipfile.ZipFile(partial, "w") as new:
            for entry in sorted(files):
                new.writestr(zipfile.ZipInfo(entry, _EPOCH), files[entry])

    try:
        with zipfile.ZipFile(built) as old:
            files = {entry: old.read(entry) for entry in old.namelist()}
        files[MANIFEST_NAME] = _without_time(files[MANIFEST_NAME])
        files[SEAL_NAME] = make_seal(files)
        write_atomically(target, write)
    except OSError as error:
        raise PackagingError(f"the archive cannot be written to {target}: {error}") from error
    return target


def _without_time(manifest: bytes) -> bytes:
    content = json.loads(manifest)
    content.pop("createdOn", None)
    return json.dumps(content, indent=2, sort_keys=True).encode()
