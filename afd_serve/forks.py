"""What a process and those that are forked off it share without harm."""

import os
from threading import Lock

__all__ = ["lock_across_forks"]


def lock_across_forks() -> Lock:
    """A lock that no other thread holds while this process forks: the child has no such thread that could release it.

    A fork waits for the lock. It lives as long as the process.
    """
    lock = Lock()
    os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock
