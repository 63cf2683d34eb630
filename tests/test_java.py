"""What is said where TorchServe would find no Java."""

from pathlib import Path

import pytest

from afd_serve.doctor import examine
from afd_serve.errors import DependencyError
from afd_serve.servers import java
from afd_serve.servers.java import find_java


def test_a_wrong_java_home_is_named_also_by_the_doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    expected = f"JAVA_HOME is {tmp_path}, which has no bin/java: unset or correct it"
    with pytest.raises(DependencyError) as raised:
        find_java()
    assert str(raised.value) == expected
    (check,) = (check for check in examine() if check.name == "java")
    assert not check.ok
    assert check.detail.endswith(expected)


def test_where_there_is_no_java_the_advice_is_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="apt-get install openjdk"):
        find_java()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (b"\x7fELF of another machine", "Exec format error"),
        (b"#!/nowhere/sh\n", "No such file"),
        (b"#!/bin/sh\nexec sleep 600\n", "timed out"),
    ],
    ids=["of another machine", "without what runs it", "that hangs"],
)
def test_a_java_that_cannot_be_asked_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: bytes, reason: str
) -> None:
    found = tmp_path / "bin" / "java"
    found.parent.mkdir()
    found.write_bytes(program)
    found.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr(java, "_PATIENCE", 0.5)
    with pytest.raises(DependencyError, match=f"{found} cannot be asked for its version: .*{reason}"):
        find_java()
    (check,) = (check for check in examine() if check.name == "java")
    assert not check.ok
