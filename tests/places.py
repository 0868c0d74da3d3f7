"""Where tests listen when the port must be known beforehand: nowhere that anybody else would.

A port that was free a moment ago is not free now: the kernel gives it to whoever connects. So these
are below the ports that the kernel gives, on a loopback address of this process, and each is used once.
"""

from __future__ import annotations

import itertools
import os
import socket

HERE = "127.{}.{}.{}".format(*(os.getpid() | 1 << 22).to_bytes(3))
PACKED = socket.inet_aton(HERE)
_ports = itertools.count(10_000 + os.getpid() % 100 * 200)


def own_port() -> int:
    """A port of HERE, and of the wildcard addresses, that nothing listens on; another one at each call."""
    return next(_ports)
