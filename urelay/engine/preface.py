"""`send-proxy`: the header that goes ahead of everything else on an upstream's connection.

Whoever is at the other end is told whose connection it is: the destination itself for `direct`, the
proxy (before it is asked for anything) for the others. The header speaks of the client's connection,
not of ours: its source is the client, its destination what the client asked for. A name that was
asked for is said in version 2 beside the address it led to, and cannot be said in version 1.

A client without an address (of a unix socket) has a header too, since its receiver will insist on
one: it says that nothing is known.
"""

from __future__ import annotations

import asyncio
import socket
from typing import NamedTuple

from urelay.engine.connect import failure_of, words
from urelay.errors import DialError
from urelay.net.address import Endpoint
from urelay.policy.model import SendProxy, Upstream
from urelay.protocols.proxy_header import header_v1, header_v2


class Caller(NamedTuple):
    """Whose connection it is that a way is opened for."""

    client: Endpoint | None
    """None: it has no address"""
    asked: Endpoint
    """What it asked for"""


def preface(upstream: Upstream, caller: Caller, reached: Endpoint | None = None) -> bytes:
    """What is sent first on a connection of `upstream`; nothing for most.

    `reached` is the address that was asked for or that the name led to, where that is known here.
    """
    version = upstream.send_proxy
    if version is None:
        return b""
    client, (host, port) = caller
    destination, name = caller.asked, None
    if isinstance(host, str):
        name = host
        if reached is not None:
            destination = Endpoint(reached.host, port)
    if version is SendProxy.V1:
        return header_v1(client, destination)
    return header_v2(client, destination, name)


async def announce(
    sock: socket.socket, upstream: Upstream, caller: Caller, reached: Endpoint | None = None
) -> None:
    """Send it on a socket that was connected just now. Raises DialError, and has closed it then."""
    data = preface(upstream, caller, reached)
    if not data:
        return
    try:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    except OSError as error:
        sock.close()
        raise DialError(failure_of(error), f"{words(error)} while sending a PROXY header") from None
    except BaseException:
        sock.close()
        raise
