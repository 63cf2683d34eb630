"""Folders of servers are their own account's, however generous the umask is."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from afd_serve.errors import ServingError
from afd_serve.servers.folders import make_private, make_state_dir


@pytest.fixture(autouse=True)
def _generous() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_state_directory_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    make_state_dir(tmp_path / "serve" / "torchserve")
    assert mode(tmp_path / "serve" / "torchserve") == 0o700


def test_a_folder_that_somebody_named_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o1777)
    (tmp_path / "shared").chmod(0o1777)
    make_state_dir(tmp_path / "shared")
    assert mode(tmp_path / "shared") == 0o1777


@pytest.mark.parametrize("other", ["logs/app.log", "model_store/afd.mar", "model_repository_mine/1/model.py", "a.txt"])
def test_a_folder_with_files_of_others_is_no_state_directory(tmp_path: Path, other: str) -> None:
    (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / other).touch()
    with pytest.raises(ServingError, match=rf"holds {other.partition('/')[0]}, which is no server's .* --state-dir"):
        make_state_dir(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.partition("/")[0]]


@pytest.mark.parametrize(
    "left",
    [
        *("server.json", "archives/afd.sources", "log4j2.xml", "backends/python/libtriton_python.so"),
        *("environment/bin/python3", "model_repository-0123456789ab/afd/config.pbtxt", "lost+found/x"),
    ],
)
def test_state_directories_of_earlier_versions_and_empty_file_systems_are_taken(tmp_path: Path, left: str) -> None:
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).touch()
    make_state_dir(tmp_path)
    (tmp_path / "server.json").unlink(missing_ok=True)
    (tmp_path / "logs").mkdir()
    make_state_dir(tmp_path)


def test_two_starts_may_make_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_state_dir(tmp_path)
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as it was a moment ago
    make_state_dir(tmp_path)


def test_a_folder_of_ours_becomes_private_also_where_it_was_not(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir(mode=0o755)
    for folder in (tmp_path / "logs", tmp_path / "new" / "archives"):
        assert make_private(folder) == folder
        assert mode(folder) == 0o700
