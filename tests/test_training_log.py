"""The log of a fit survives what happens to files."""

from pathlib import Path

import pytest

from afd_serve.training.log import append_loss, keep_until


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    for step in (20, 40, 60):
        append_loss(path, step, 1 / step)
    return path


def test_what_is_done_again_is_dropped(log: Path) -> None:
    keep_until(log, 40)
    assert log.read_text() == '{"step": 20, "loss": 0.05}\n{"step": 40, "loss": 0.025}\n'
    keep_until(log, 0)
    assert log.read_text() == ""


@pytest.mark.parametrize(
    "damage",
    [b"{'step", bytes(40), b"\xff\xfe", b"", b"3", b"{}", b'{"step": "x", "loss": 1}', b'{"step": null, "loss": 1}'],
)
def test_a_damaged_line_is_dropped_and_the_others_are_kept(log: Path, damage: bytes) -> None:
    before = log.read_bytes()
    first, *rest = before.splitlines(keepends=True)
    log.write_bytes(first + damage + b"\n" + b"".join(rest) + damage)
    keep_until(log, 60)
    assert log.read_bytes() == before


def test_a_log_that_is_whole_is_left_alone(log: Path) -> None:
    log.chmod(0o400)
    before = log.stat().st_ino
    keep_until(log, 60)
    assert log.stat().st_ino == before
    keep_until(log.with_name("none"), 60)
    assert not log.with_name("none").exists()
