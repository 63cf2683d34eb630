"""One process at a time in a folder, and no file that is half written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from afd_serve.errors import ConfigError
from afd_serve.runs import alone_in, write_atomically
from tests.conftest import largest_file


def test_a_folder_is_made_held_and_free_again(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    for _ in range(2):
        with alone_in(folder):
            assert folder.is_dir()
            with pytest.raises(ConfigError, match="another run is at work"), alone_in(folder):
                pass
    with alone_in(folder), alone_in(folder / "part"):
        pass


def test_a_failure_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), alone_in(tmp_path):
        raise ValueError("inside")
    with alone_in(tmp_path):
        pass


def test_a_failure_leaves_no_empty_folder_that_was_not_there_before(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    with pytest.raises(ValueError, match="inside"), alone_in(folder):
        raise ValueError("inside")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError), alone_in(folder):
        [folder.parent.joinpath(name).mkdir() for name in ("second", "second")]
    assert [path.name for path in folder.parent.iterdir()] == ["second"]


def test_a_run_that_finds_another_one_leaves_its_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with alone_in(folder), monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda _: False)  # as both saw it, when they began
        with pytest.raises(ConfigError, match="another run is at work"), alone_in(folder):
            pass
        assert folder.is_dir()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from afd_serve.runs import alone_in\n"
        "with alone_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="wait for it or choose another folder"), alone_in(tmp_path):
            pass
        holder.kill()
    with alone_in(tmp_path):
        pass


def test_who_waits_gets_the_folder_when_it_is_free_and_says_so(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from afd_serve.runs import alone_in\n"
        "with alone_in(Path(sys.argv[1]), wait=True): print('held')"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with alone_in(tmp_path):
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr is not None
        assert "this one waits for it" in waiting.stderr.readline()
    with waiting:
        assert waiting.communicate()[0] == "held\n"


def test_a_process_that_is_started_in_a_folder_does_not_hold_it(tmp_path: Path) -> None:
    with alone_in(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    with child:
        with alone_in(tmp_path, wait=True):  # the child's descriptors close a moment after it has been started
            assert child.poll() is None
        child.kill()


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with largest_file(1_000), pytest.raises(OSError, match="too large"):
        write_atomically(path, lambda target: target.write_bytes(bytes(2_000)))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with largest_file(1_000), pytest.raises(OSError, match=re.escape(f"too large: '{tmp_path}'")), alone_in(tmp_path):
        write_atomically(tmp_path / "file", lambda target: target.write_bytes(bytes(2_000)))
