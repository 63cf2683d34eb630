"""One process at a time in a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from afd_serve.errors import ConfigError
from afd_serve.runs import alone_in


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
