"""How many processor cores there are to use."""

import functools
import math
import os
import sys
from pathlib import Path

__all__ = ["usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """How many cores this process may use, and with it those that it starts; Java counts TorchServe's so too.

    Those that it may run on, and no more than its control groups grant it time for, as `docker run --cpus` has it.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _granted())


@functools.cache
def _granted() -> int:
    """The least that this process's control groups and those around them grant, in whole cores.

    Read once: it takes a third of what a small picture does, and hardly ever changes.
    """
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return sys.maxsize
    shares: list[float | None] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            shares += [_share(group / "cpu.max") for group in _upwards(_CGROUPS, path)]
        elif "cpu" in controllers.split(","):
            mounted = _CGROUPS / "cpu" if (_CGROUPS / "cpu").is_dir() else _CGROUPS / controllers
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            shares += [_share(*(group / name for name in names)) for group in _upwards(mounted, path)]
    return min((math.ceil(share) for share in shares if share is not None), default=sys.maxsize)


def _upwards(root: Path, path: str) -> list[Path]:
    """A group and those around it; in a container the paths are often those outside, and its own group is the root."""
    group = root / path.lstrip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(root))]


def _share(*files: Path) -> float | None:
    """Quota over period, both in microseconds; None where there is no limit, or no such group."""
    try:
        quota, period = " ".join(file.read_text() for file in files).split()
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # "max" is no number
        return None
