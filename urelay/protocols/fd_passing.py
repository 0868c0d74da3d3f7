"""Connections handed over as descriptors: what socketbox, HAProxy and their kin put round SCM_RIGHTS.

The kernel carries a descriptor beside a message (unix(7), SCM_RIGHTS); what the message says is by
agreement, and three agreements are about:

    from                         socket            message        answered
    socketbox ("A")              datagram          00             never
    HAProxy `sockpair@`          stream, datagram  00 00          never
    python-socketbox ("P")       seqpacket         03 00 00 00    never

In all of them the descriptor says everything and the message nothing, so a receiver looks at the
descriptors alone: the first is the connection, and any more are closed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

HAND_OVER: Final = b"\0"
"""The message of "A" beside a descriptor"""

MESSAGE_LIMIT: Final = 128
"""Bytes of a message to read: more than anybody sends"""

DESCRIPTOR_LIMIT: Final = 253
"""Descriptors one message carries at most (SCM_MAX_FD): with room for all of them none is ever lost"""

DESCRIPTOR_SIZE: Final = 4

_SOL_SOCKET, _SCM_RIGHTS = 1, 1


def descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Every descriptor in the control messages of one recvmsg(2), in order; all are the caller's to close."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == _SOL_SOCKET and kind == _SCM_RIGHTS:
            # A control message that was cut short ends with half a number, which names nothing.
            whole = len(data) - len(data) % DESCRIPTOR_SIZE
            found += memoryview(data)[:whole].cast("i")
    return found
