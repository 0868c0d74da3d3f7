"""Where a redirected client wanted to go: what the kernel's NAT remembers of its connection.

nftables `redirect` (iptables REDIRECT) rewrites the destination of a packet to an address of this
machine, and connection tracking keeps what stood there before. SO_ORIGINAL_DST asks for it:
linux/netfilter_ipv4.h, linux/netfilter_ipv6/ip6_tables.h. An IPv4 client of a `[::]` socket is asked
about as IPv4, for that is how it is tracked.

A client that was not redirected but connected to the listener itself has no other destination. The
kernel says so (ENOENT), or, where it tracks every connection, gives our own address back; dialling
that would come back to the same listener for ever.
"""

from __future__ import annotations

import errno
import os
import socket
from socket import SocketType

from urelay.errors import DialError, Failure
from urelay.net.address import Endpoint, unmap

_SO_ORIGINAL_DST = 80
"""The same number at both levels"""
_SOCKADDR_IN = 16
_SOCKADDR_IN6 = 28
_MAPPED = bytes(10) + b"\xff\xff"


def original_destination(client: SocketType) -> Endpoint:
    """What `client`, an accepted TCP socket, was connected to before NAT brought it here.

    Raises DialError (REFUSED) when it was not redirected, or when nobody remembers.
    """
    local = client.getsockname()
    address = socket.inet_pton(client.family, local[0].partition("%")[0])
    try:
        if client.family == socket.AF_INET or address.startswith(_MAPPED):
            # struct sockaddr_in: family, port, address; the last two in network order.
            found = client.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN)
            original = Endpoint(found[4:8], int.from_bytes(found[2:4]))
        else:
            # struct sockaddr_in6: family, port, flow label, address, scope.
            found = client.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6)
            original = Endpoint(unmap(found[8:24]), int.from_bytes(found[2:4]))
    except OSError as error:
        raise DialError(Failure.REFUSED, _why(error)) from None
    if original == Endpoint(unmap(address), local[1]):
        raise DialError(Failure.REFUSED, f"not redirected: the client connected to {original} itself")
    return original


def _why(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "not redirected: the kernel's NAT knows nothing of this connection"
    if error.errno == errno.ENOPROTOOPT:
        return "not redirected: nothing tracks connections here"
    return f"no original destination: {os.strerror(error.errno or errno.EIO).lower()}"
