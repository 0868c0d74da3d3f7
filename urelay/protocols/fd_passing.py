"""Connections handed over as descriptors: what socketbox, HAProxy and their kin put round SCM_RIGHTS.

The kernel carries a descriptor beside a message (unix(7), SCM_RIGHTS); what the message says is by
agreement, and three agreements are about:

    from                         socket            message        answered
    socketbox ("A")              datagram          00             never
    HAProxy `sockpair@`          stream, datagram  00 00          never
    python-socketbox ("P")       seqpacket         03 00 00 00    never

In all of them the descriptor says everything and the message nothing, so a receiver looks at the
descriptors alone: the first is the connection, and any more are closed.

Before its descriptors flow, a receiver of "P" registers for one *slot*, a number the sender's
configuration gives it:

    request   01 00  00 00  SLOT    8 bytes, the slot as four, all big endian
    reply     80 00 00 00           whatever else comes, or nothing, is a refusal
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from urelay.errors import ProtocolError

HAND_OVER: Final = b"\0"
"""The message of "A" beside a descriptor"""

DELIVERY: Final = b"\x03\0\0\0"
"""The message of "P" beside a descriptor"""

GRANTED: Final = b"\x80\0\0\0"
"""The reply to a registration that is accepted"""

MESSAGE_LIMIT: Final = 128
"""Bytes of a message to read: more than anybody sends"""

DESCRIPTOR_LIMIT: Final = 253
"""Descriptors one message carries at most (SCM_MAX_FD): with room for all of them none is ever lost"""

DESCRIPTOR_SIZE: Final = 4

_HIGHEST_SLOT = 0xFFFF_FFFF
_SOL_SOCKET, _SCM_RIGHTS = 1, 1
_REGISTER = b"\x01\0\0\0"


def descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Every descriptor in the control messages of one recvmsg(2), in order; all are the caller's to close."""
    found: list[int] = []
    for level, kind, data in ancillary:
        if level == _SOL_SOCKET and kind == _SCM_RIGHTS:
            # A control message that was cut short ends with half a number, which names nothing.
            whole = len(data) - len(data) % DESCRIPTOR_SIZE
            found += memoryview(data)[:whole].cast("i")
    return found


def registration(slot: int) -> bytes:
    """The request for a slot, 0 to 4,294,967,295."""
    if not 0 <= slot <= _HIGHEST_SLOT:
        raise ValueError(f"slot {slot} does not fit in four bytes")
    return _REGISTER + slot.to_bytes(4)


def read_registration(message: bytes) -> int:
    """The slot a request asks for. Raises ProtocolError; a refusal is closing without a reply."""
    if len(message) != len(_REGISTER) + 4:
        raise ProtocolError(f"expected 8 bytes of a registration, got {len(message)}")
    if not message.startswith(_REGISTER):
        raise ProtocolError(f"expected 01 00 00 00 before the slot, got {message[:4].hex(' ')}")
    return int.from_bytes(message[4:])


def check_granted(reply: bytes) -> None:
    """Raises ProtocolError unless a registration was accepted."""
    if reply != GRANTED:
        raise ProtocolError(f"the registration was refused: {reply[:8].hex(' ') or 'no reply'}")
