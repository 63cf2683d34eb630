"""What a running TorchServe keeps in its folders, and for how long."""

import stat
from xml.etree import ElementTree

import pytest

from afd_serve.servers.torchserve import TorchServe
from tests.serving.pictures import GOOD

pytestmark = pytest.mark.serving


def test_keys_are_for_the_owner_only(server: TorchServe) -> None:
    for name in ("key_file.json", server.header_file.name):
        assert (server.state_dir / name).stat().st_mode & 0o077 == 0


def test_requests_are_logged_where_logs_have_an_end(server: TorchServe) -> None:
    def sizes() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in (server.state_dir / "logs").iterdir()}

    before = sizes()
    for _ in range(20):
        server.post(GOOD["sample"])
    after = sizes()
    files = list(ElementTree.parse(server.state_dir / "log4j2.xml").iter("RollingFile"))
    assert all(file.find("SizeBasedTriggeringPolicy") is not None for file in files)
    rolled = {file.get("fileName", "").rpartition("/")[2] for file in files}
    assert rolled | {"console.log"} == set(after)
    assert "access_log.log" in {name for name in after if after[name] != before.get(name)} <= rolled


def test_the_unpacked_model_is_safe_from_the_cleaning_of_temporary_folders(server: TorchServe) -> None:
    files = [path for path in server.scratch.rglob("*") if path.is_file()]
    assert "model.pt" in {path.name for path in files}
    assert all(path.stat().st_mode & stat.S_ISVTX for path in files)
