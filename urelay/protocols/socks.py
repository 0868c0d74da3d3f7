"""The server side of SOCKS4, SOCKS4a and SOCKS5 with CONNECT: bytes in, replies and a request out.

Theory of operation. Each state waits for one whole message and consumes it at once or not at all:

    state      waits for                                  then
    VERSION    the first byte, which it leaves            GREETING (5), REQUEST4 (4)
    GREETING   RFC 1928, 3: the methods                   REQUEST5 without users, LOGIN with
    LOGIN      RFC 1929, 2: user and password             REQUEST5, when they are right
    REQUEST5   RFC 1928, 4                                DONE
    REQUEST4   SOCKS4, or 4a: 0.0.0.x and a host name     DONE, never with users
    DONE       nothing: what follows is the client's own  -
    REFUSED    nothing: the connection is being closed    -

INVARIANT: with users, REQUEST5 is entered from a successful LOGIN only, and REQUEST4 never ends in
DONE. So there is no order of messages that reaches a request without a login.

Every message is bounded by its own length fields (SOCKS4 has none, so its texts are held to 255
bytes), hence no more than 520 bytes are ever kept. What a client sends behind its request is not
looked at: it stands in `leftover`, exact. A destination is read here once, by the one address
parser: nothing that is neither an address nor a host name leaves this module.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from urelay.errors import AddressError, Failure, ProtocolError
from urelay.net.address import Endpoint, Host, parse_host, printable, unmap
from urelay.protocols.users import Users

RECEIVE_SIZE: Final = 2048
"""Bytes a caller need read at a time: the longest conversation is 1,032 bytes, the rest is leftover."""

_TEXT_LIMIT: Final = 255
"""Bytes of a SOCKS4 user id or host name; SOCKS5 cannot say more in its one length byte."""

_SOCKS4 = 4
_SOCKS5 = 5
_CONNECT = 1

_NO_LOGIN = 0x00
_USER_AND_PASSWORD = 0x02
_NO_METHOD = 0xFF

_IPV4 = 1
_NAME = 3
_IPV6 = 4
_ADDRESS_LENGTH5 = {_IPV4: 4, _IPV6: 16}

_GRANTED5 = 0x00
_FAILED5 = 0x01
_NO_SUCH_COMMAND5 = 0x07
_NO_SUCH_ADDRESS_TYPE5 = 0x08
_GRANTED4 = 0x5A
_REJECTED4 = 0x5B

# RFC 1928, 6. Time that runs out and a name nobody knows have no code of their own: the host is
# what was not reached. 0x07 and 0x08 are about requests, not about destinations.
_REPLY5 = {
    Failure.ERROR: 0x01,
    Failure.DENIED: 0x02,
    Failure.NET_UNREACHABLE: 0x03,
    Failure.HOST_UNREACHABLE: 0x04,
    Failure.NAME_NOT_FOUND: 0x04,
    Failure.TIMEOUT: 0x04,
    Failure.REFUSED: 0x05,
    Failure.TTL_EXPIRED: 0x06,
}


@dataclass(frozen=True, slots=True)
class Request:
    """A CONNECT as the client asked for it, with the two answers it may get."""

    version: int
    """4 (also for 4a) or 5"""
    host: Host
    port: int
    """1 to 65535"""
    user: str | None
    """Who logged in (SOCKS5), or who a SOCKS4 client says it is, which proves nothing"""

    def success(self, bound: Endpoint | None) -> bytes:
        """The reply to a connection that was made; `bound` is the relay's own end of it, if it has one."""
        if self.version == _SOCKS4:
            return _reply4(_GRANTED4, bound)
        return _reply5(_GRANTED5, bound)

    def failure(self, failure: Failure, reason: str | None = None) -> bytes:
        """The reply to one that was not made; close after sending it. SOCKS has no field for `reason`.

        SOCKS4 has one code for every failure: its other two are about identd.
        """
        if self.version == _SOCKS4:
            return _reply4(_REJECTED4)
        return _reply5(_REPLY5[failure])


class State(enum.Enum):
    """Where a conversation is (see the module's table)."""

    VERSION = enum.auto()
    GREETING = enum.auto()
    LOGIN = enum.auto()
    REQUEST5 = enum.auto()
    REQUEST4 = enum.auto()
    DONE = enum.auto()
    REFUSED = enum.auto()


class SocksServer:
    """One client's conversation up to its request.

    Feed `receive` what the client sends, at most RECEIVE_SIZE bytes at a time, and send what it
    returns, until `request` is set or it raises. Then read no more for it: `leftover` holds the
    bytes the client sent behind its request, which belong to the destination.
    """

    __slots__ = ("_buffer", "_state", "_user", "_users", "leftover", "request")

    def __init__(self, users: Users | None = None) -> None:
        self._users = users
        self._buffer = bytearray()
        self._state = State.VERSION
        self._user: str | None = None
        self.request: Request | None = None
        self.leftover = b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client; returns what to send to it now, perhaps nothing.

        Raises ProtocolError when the conversation is over without a request: send its `reply`,
        which includes everything owed so far, then close.
        """
        if self.request is not None:
            self.leftover += data
            return b""
        self._buffer += data
        replies = b""
        while self._state is not State.DONE:
            try:
                reply = _STEPS[self._state](self)
            except ProtocolError as error:
                self._state = State.REFUSED
                self._buffer.clear()
                error.reply = replies + error.reply
                raise
            if reply is None:
                return replies
            replies += reply
        self.leftover = bytes(self._buffer)
        self._buffer.clear()
        return replies

    # Each step returns None when its message is not whole yet, else its reply, perhaps empty.

    def _version(self) -> bytes | None:
        if not self._buffer:
            return None
        version = self._buffer[0]
        if version == _SOCKS5:
            self._state = State.GREETING
        elif version == _SOCKS4:
            self._state = State.REQUEST4
        else:
            raise ProtocolError(f"expected SOCKS version 4 or 5, got {version}")
        return b""

    def _greeting(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 2 or len(buffer) < 2 + buffer[1]:
            return None
        methods = self._take(2 + buffer[1])[2:]
        method, state = (
            (_NO_LOGIN, State.REQUEST5) if self._users is None else (_USER_AND_PASSWORD, State.LOGIN)
        )
        if method not in methods:
            wanted = "no login" if self._users is None else "user and password"
            raise ProtocolError(f"the client does not offer {wanted}", bytes((_SOCKS5, _NO_METHOD)))
        self._state = state
        return bytes((_SOCKS5, method))

    def _login(self) -> bytes | None:
        buffer = self._buffer
        if buffer and buffer[0] != 1:
            raise ProtocolError(f"expected login version 1, got {buffer[0]}")
        if len(buffer) < 2 or len(buffer) < 3 + buffer[1]:
            return None
        behind_user = 2 + buffer[1]
        end = behind_user + 1 + buffer[behind_user]
        if len(buffer) < end:
            return None
        message = self._take(end)
        user, password = message[2:behind_user], message[behind_user + 1 :]
        # RFC 1929, 2: the version in the reply is that of the login, 1, not that of SOCKS.
        if self._users is None or not self._users.check(user, password):
            raise ProtocolError("wrong user or password", b"\x01\x01")
        self._user = user.decode("utf-8", "backslashreplace")
        self._state = State.REQUEST5
        return b"\x01\x00"

    def _request5(self) -> bytes | None:
        buffer = self._buffer
        if buffer and buffer[0] != _SOCKS5:
            raise ProtocolError(f"expected SOCKS version 5, got {buffer[0]}", _reply5(_FAILED5))
        if len(buffer) < 5:
            return None
        kind = buffer[3]
        length = _ADDRESS_LENGTH5.get(kind, 1 + buffer[4] if kind == _NAME else None)
        if length is None:
            raise ProtocolError(f"there is no SOCKS address type {kind}", _reply5(_NO_SUCH_ADDRESS_TYPE5))
        if len(buffer) < 6 + length:
            return None
        message = self._take(6 + length)
        if message[1] != _CONNECT:
            raise ProtocolError(f"command {message[1]} is not CONNECT", _reply5(_NO_SUCH_COMMAND5))
        if message[2] != 0:
            raise ProtocolError(f"the reserved byte is {message[2]}, not 0", _reply5(_FAILED5))
        field = message[4:-2]
        host = _host(field[1:], _reply5(_FAILED5)) if kind == _NAME else unmap(field)
        self._finish(_SOCKS5, host, message[-2:], _reply5(_FAILED5))
        return b""

    def _request4(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < 9:
            return None
        end_of_user = _text_end(buffer, 8, "user id")
        if end_of_user is None:
            return None
        end = end_of_user
        # SOCKS4a: 0.0.0.x, x not 0, says that a host name follows.
        named = buffer[4:7] == b"\0\0\0" and buffer[7] != 0
        if named:
            end_of_host = _text_end(buffer, end_of_user + 1, "host name")
            if end_of_host is None:
                return None
            end = end_of_host
        message = self._take(end + 1)
        if self._users is not None:
            raise ProtocolError("SOCKS4 has no password and this listener wants one", _reply4(_REJECTED4))
        if message[1] != _CONNECT:
            raise ProtocolError(f"command {message[1]} is not CONNECT", _reply4(_REJECTED4))
        self._user = message[8:end_of_user].decode("utf-8", "backslashreplace") or None
        host = _host(message[end_of_user + 1 : -1], _reply4(_REJECTED4)) if named else message[4:8]
        self._finish(_SOCKS4, host, message[2:4], _reply4(_REJECTED4))
        return b""

    def _refused(self) -> bytes | None:
        raise ProtocolError("bytes behind a refused request")

    def _finish(self, version: int, host: Host, port_field: bytes, refusal: bytes) -> None:
        port = int.from_bytes(port_field)
        if port == 0:
            raise ProtocolError("port 0 cannot be connected to", refusal)
        self.request = Request(version, host, port, self._user)
        self._state = State.DONE

    def _take(self, length: int) -> bytes:
        message = bytes(self._buffer[:length])
        del self._buffer[:length]
        return message


_STEPS: Final[dict[State, Callable[[SocksServer], bytes | None]]] = {
    State.VERSION: SocksServer._version,
    State.GREETING: SocksServer._greeting,
    State.LOGIN: SocksServer._login,
    State.REQUEST5: SocksServer._request5,
    State.REQUEST4: SocksServer._request4,
    State.REFUSED: SocksServer._refused,
}


def _host(field: bytes, refusal: bytes) -> Host:
    """The host a name field spells, or a refusal; brackets round IPv6 are accepted."""
    try:
        return parse_host(field.decode("ascii"))
    except UnicodeDecodeError:
        shown = printable(field.decode("latin-1"))
        raise ProtocolError(f"`{shown}` is not a host name: it is not ASCII", refusal) from None
    except AddressError as error:
        raise ProtocolError(str(error), refusal) from None


def _text_end(buffer: bytearray, start: int, what: str) -> int | None:
    """Where the NUL behind a SOCKS4 text is; None while it has not come."""
    end = buffer.find(0, start, start + _TEXT_LIMIT + 1)
    if end >= 0:
        return end
    if len(buffer) > start + _TEXT_LIMIT:
        raise ProtocolError(f"a SOCKS4 {what} of more than {_TEXT_LIMIT} bytes", _reply4(_REJECTED4))
    return None


def _reply5(code: int, bound: Endpoint | None = None) -> bytes:
    """RFC 1928, 6; 0.0.0.0:0 where there is no address to tell."""
    if bound is None or isinstance(bound.host, str):
        return bytes((_SOCKS5, code, 0, _IPV4)) + bytes(6)
    kind = _IPV4 if len(bound.host) == 4 else _IPV6
    return bytes((_SOCKS5, code, 0, kind)) + bound.host + bound.port.to_bytes(2)


def _reply4(code: int, bound: Endpoint | None = None) -> bytes:
    """A SOCKS4 reply: version 0, the code, port, IPv4 address; zeros where there is none to tell."""
    if bound is None or isinstance(bound.host, str) or len(bound.host) != 4:
        return bytes((0, code)) + bytes(6)
    return bytes((0, code)) + bound.port.to_bytes(2) + bound.host
