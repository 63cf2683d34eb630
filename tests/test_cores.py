import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import afd_serve.cores
from afd_serve.cores import usable_cores


@pytest.fixture(autouse=True)
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Control groups of the test's own, without limits; no machine lets a test make real ones."""
    monkeypatch.setattr(afd_serve.cores, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(afd_serve.cores, "_OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/\n")
    (tmp_path / "cgroup").mkdir()
    afd_serve.cores._granted.cache_clear()
    yield tmp_path
    afd_serve.cores._granted.cache_clear()


def test_cores_that_this_process_may_not_use_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    allowed = os.sched_getaffinity(0)
    assert usable_cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("quota", "cores"), [("400000 100000", 4), ("150000 100000", 2), ("20000 100000", 1), ("max 100000", 8)]
)
def test_a_container_has_as_many_cores_as_its_group_grants_it_time_for(
    groups: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (groups / "cgroup" / "cpu.max").write_text(f"{quota}\n")
    assert usable_cores() == cores


def test_the_groups_around_this_one_limit_it_too(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (groups / "own").write_text("0::/system.slice/afd-serve.service\n")
    unit = groups / "cgroup" / "system.slice" / "afd-serve.service"
    unit.mkdir(parents=True)
    (unit / "cpu.max").write_text("max 100000\n")
    (unit.parent / "cpu.max").write_text("300000 100000\n")
    assert usable_cores() == 3


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize(("quota", "cores"), [("200000", 2), ("-1", 8)])
def test_groups_of_version_1_are_read_as_well(
    groups: Path, monkeypatch: pytest.MonkeyPatch, folder: str, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (groups / "own").write_text(f"3:{folder}:/docker/a:b\n2:cpuset:/\n0::/\n")  # a path may hold colons
    group = groups / "cgroup" / folder
    group.mkdir()
    (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores() == cores


def test_a_system_without_groups_has_the_cores_that_it_has(groups: Path) -> None:
    (groups / "own").unlink()
    assert usable_cores() == len(os.sched_getaffinity(0))
