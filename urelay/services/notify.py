"""Tells the service manager how it goes: sd_notify(3), without its library.

One datagram a message to the socket that NOTIFY_SOCKET names, a path or an abstract name (`@…`).
Nothing is sent when it is unset, and a manager that does not listen is no reason to fail: the relay
works the same without one.
"""

from __future__ import annotations

import contextlib
import socket
import time


class Notifier:
    """Sends states to a service manager; `address` is the value of NOTIFY_SOCKET, or None."""

    def __init__(self, address: str | None) -> None:
        self._address = address

    def ready(self, status: str) -> None:
        """Everything listens (READY=1), or a reload is over."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` must follow, however it ends.

        systemd 253 and newer wait for ever without the time, taken from the clock they use.
        """
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """No client is accepted any more; those there are may finish."""
        self._send("STOPPING=1", f"STATUS={status}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, kind) as sock:
            # A line each: a status must not smuggle in another assignment.
            sock.sendto("\n".join(line.replace("\n", " ") for line in lines).encode(), address)
