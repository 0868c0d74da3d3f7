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

from urelay.engine.connect import failure_of, words
from urelay.errors import DialError
from urelay.net.address import Endpoint
from urelay.policy.model import SendProxy, Upstream
from urelay.protocols.proxy_header import header_v1, header_v2


def preface(
    upstream: Upstream, client: Endpoint | None, asked: Endpoint, reached: Endpoint | None = None
) -> bytes:
    """What is sent first on a connection of `upstream`; nothing for most.

    `asked` is what `client` asked for; `reached` is the address it led to, where that is known here.
    """
    version = upstream.send_proxy
    if version is None:
        return b""
    destination, name = asked, None
    if isinstance(asked.host, str):
        name = asked.host
        if reached is not None:
            destination = Endpoint(reached.host, asked.port)
    if version is SendProxy.V1:
        return header_v1(client, destination)
    return header_v2(client, destination, name)


async def send_preface(sock: socket.socket, data: bytes) -> None:
    """Send it on a non-blocking socket that was connected just now. Raises DialError."""
    try:
        await asyncio.get_running_loop().sock_sendall(sock, data)
    except OSError as error:
        raise DialError(failure_of(error), f"{words(error)} while sending a PROXY header") from None
