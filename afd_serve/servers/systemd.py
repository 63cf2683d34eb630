"""What a service tells systemd; without systemd it tells nobody."""

import os
import socket
from contextlib import suppress

__all__ = ["tell_ready"]


def tell_ready() -> None:
    """Say that the service works, as units of ``Type=notify`` do; where nobody listens, nothing is lost.

    Source: sd_notify(3). The variable names a socket in the file system, or with a leading ``@`` an abstract one.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_systemd, suppress(OSError):
            to_systemd.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
