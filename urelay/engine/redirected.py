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
import socket
from socket import SocketType

from urelay.engine.ends import own_end
from urelay.net.address import Endpoint, unmap

_SO_ORIGINAL_DST = 80
"""The same number at both levels"""
_SOCKADDR_IN = 16
_SOCKADDR_IN6 = 28
_NOT_TRACKED = frozenset({errno.ENOENT, errno.ENOPROTOOPT, errno.EOPNOTSUPP})
"""The kernel's NAT knows nothing of it; nothing tracks connections here; it is a unix socket"""


def original_destination(client: SocketType) -> Endpoint | None:
    """What `client`, an accepted TCP socket, was connected to before NAT brought it here.

    None when it was not redirected, or when nobody remembers. Raises OSError for a socket that broke.
    """
    local = own_end(client)
    try:
        if local is not None and len(local.host) == 4:
            # struct sockaddr_in: family, port, address; the last two in network order.
            found = client.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN)
            original = Endpoint(found[4:8], int.from_bytes(found[2:4]))
        else:
            # struct sockaddr_in6: family, port, flow label, address, scope.
            found = client.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6)
            original = Endpoint(unmap(found[8:24]), int.from_bytes(found[2:4]))
    except OSError as error:
        if error.errno in _NOT_TRACKED:
            return None
        raise
    return None if original == local else original
