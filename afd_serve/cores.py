"""How many processor cores there are to use."""

import os

__all__ = ["usable_cores"]


def usable_cores() -> int:
    """How many cores this process may run on, and with it those that it starts; Java counts TorchServe's so too."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
