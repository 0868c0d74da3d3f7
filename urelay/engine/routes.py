"""Asks the kernel's routing table whether an address is delivered to the machine itself (rtnetlink(7)).

One request over a netlink socket, whose namespace is the one that is asked about. The address that a
connected socket gets as its source would tell nearly the same, but not for IPv6 where a whole prefix
is local: there the kernel picks another address of the interface.
"""

from __future__ import annotations

import socket
import struct

from urelay.net.address import Address

_RTM_NEWROUTE = 24
_RTM_GETROUTE = 26
_NLM_F_REQUEST = 1
_RTA_DST = 1
_RTN_LOCAL = 2
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence, sender"""
_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, length of the destination, …, type (the eighth), flags"""
_ATTRIBUTE = struct.Struct("=HH")
_REPLY_BYTES = 4096


def is_local(host: Address, sock: socket.socket) -> bool:
    """Whether a connection to `host` from the namespace of `sock`, an unbound netlink socket, stays there.

    Raises OSError when the kernel cannot be asked; an address without a route is not local.
    """
    family = socket.AF_INET if len(host) == 4 else socket.AF_INET6
    route = _ROUTE.pack(family, 8 * len(host), 0, 0, 0, 0, 0, 0, 0)
    body = route + _ATTRIBUTE.pack(_ATTRIBUTE.size + len(host), _RTA_DST) + host
    sock.sendall(_HEADER.pack(_HEADER.size + len(body), _RTM_GETROUTE, _NLM_F_REQUEST, 1, 0) + body)
    # The answer is there when sending returns: the kernel makes it in the same call.
    reply = sock.recv(_REPLY_BYTES, socket.MSG_DONTWAIT)
    if _HEADER.unpack_from(reply)[1] != _RTM_NEWROUTE:
        return False
    return bool(_ROUTE.unpack_from(reply, _HEADER.size)[7] == _RTN_LOCAL)
