"""The PROXY protocol, versions 1 and 2 (haproxy's proxy-protocol.txt): headers read and headers written.

A header is what stands in front of a connection's own bytes and says whose connection it is and where
it was going. It is read only where it was promised, and then it must be there: nothing is ever
guessed from the bytes beyond which of the two versions this is.

    version  begins with         bounded by                   ends
    1        `PROXY `            107 bytes (2.1)              at CR LF
    2        twelve fixed bytes  KEPT, whatever it announces  after the length it announces (2.2)

The first byte that fits neither ends it, so a client that speaks something else is told at once, and
no more than KEPT bytes are ever held. What follows the header is the connection's own and stands in
`leftover`, exact.

What a header may leave unsaid: LOCAL and UNSPEC (version 2) and UNKNOWN (version 1) bring no
addresses, since their sender speaks for itself (a health check, a client of a unix socket). They are
valid (2.1, 2.2), and the connection's own addresses are the true ones then. A source of all zeros with
port 0 is none either: u-relay-tproxy never knows its client. Other families and UDP are refused.

Of the TLVs two are read, both about where the connection was going: 0x02, the name (PP2_TYPE_AUTHORITY),
and 0xE0, the destination inside the destination of u-relay. Every TLV must end within the header; that
makes the 180 zero bytes with which u-relay-tproxy fills its address block up (a block for unix paths
has 216) sixty empty TLVs of type 0, which mean nothing. The checksum (0x03) is for links worse than TCP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from urelay.errors import AddressError, ProtocolError
from urelay.net.address import (
    MAPPED_PREFIX,
    Address,
    Endpoint,
    Host,
    address_text,
    parse_address,
    parse_host,
    printable,
    unmap,
)

KEPT: Final = 2048
"""Bytes of a header at most: the addresses need 52, and no TLV of ours more than 258 each."""

_SIGNATURE1: Final = b"PROXY "
_SIGNATURE2: Final = b"\r\n\r\n\0\r\nQUIT\n"
_LONGEST1 = 107
_FIXED2 = 16
"""The signature, version and command, family and transport, and a length of two bytes"""

_LOCAL, _PROXY = 0x20, 0x21
"""Version 2 in the high half, the command in the low one"""
_UNSPEC = 0x00
_TCP4, _TCP6 = 0x11, 0x21
"""The address family in the high half, STREAM in the low one"""
_ADDRESS_LENGTH = {_TCP4: 4, _TCP6: 16}
_FAMILY_LENGTH1 = {"TCP4": 4, "TCP6": 16}

_AUTHORITY = 0x02
_INNER = 0xE0
_INNER_VERSION = 1
_INNER_LENGTH = 27
"""A version byte, the port, an IPv6 address, and eight bytes in reserve"""


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says. None: it does not say so."""

    source: Endpoint | None = None
    """Whose connection it is"""
    destination: Endpoint | None = None
    """Where it was going; the port may be 0, the address all zeros beside a name"""
    authority: Host | None = None
    """The host the client asked for, almost always a name"""
    inner: Endpoint | None = None
    """u-relay's second destination, behind the first"""


class HeaderReader:
    """One connection's header.

    Feed `receive` what arrives until it answers the Header or raises; then read no more for it:
    `leftover` holds the bytes behind the header, which are the connection's own.
    """

    __slots__ = ("_buffer", "_over", "leftover")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._over = False
        self.leftover = b""

    def receive(self, data: bytes) -> Header | None:
        """Take bytes; answers the header once it is whole, else None.

        Raises ProtocolError as soon as it cannot become one: close without a word.
        """
        if self._over:
            raise ProtocolError("bytes behind a PROXY header that is over")
        # No more is kept than a header may have; the rest is only looked at once it is leftover.
        room = KEPT - len(self._buffer)
        self._buffer += data[:room]
        try:
            end = _end(self._buffer)
            if end is None:
                return None
            self._over = True
            header = _read(bytes(self._buffer[:end]))
        except ProtocolError:
            self._over = True
            self._buffer.clear()
            raise
        self.leftover = bytes(self._buffer[end:]) + data[room:]
        self._buffer.clear()
        return header


def header_v1(source: Endpoint | None, destination: Endpoint) -> bytes:
    """A header of version 1 for a connection of `source` to `destination`.

    Without a source it says UNKNOWN. A host name cannot be said: its place is taken by an address of
    all zeros.
    """
    pair = _packed_pair(source, destination)
    if pair is None:
        return b"PROXY UNKNOWN\r\n"
    (near, near_port), (far, far_port) = pair
    family = "TCP4" if len(near) == 4 else "TCP6"
    return f"PROXY {family} {_text(near)} {_text(far)} {near_port} {far_port}\r\n".encode("ascii")


def header_v2(source: Endpoint | None, destination: Endpoint, name: str | None = None) -> bytes:
    """A header of version 2 for a connection of `source` to `destination`, with `name` as TLV 0x02.

    Without a source it says UNSPEC. A destination that is a host name is said as the TLV, beside an
    address of all zeros.
    """
    if isinstance(destination.host, str):
        name = destination.host
    tlvs = b"" if name is None else _tlv(_AUTHORITY, name.encode("ascii"))
    pair = _packed_pair(source, destination)
    if pair is None:
        family, addresses = _UNSPEC, b""
    else:
        (near, near_port), (far, far_port) = pair
        family = _TCP4 if len(near) == 4 else _TCP6
        addresses = near + far + near_port.to_bytes(2) + far_port.to_bytes(2)
    body = addresses + tlvs
    return _SIGNATURE2 + bytes((_PROXY, family)) + len(body).to_bytes(2) + body


# --- reading


def _end(buffer: bytearray) -> int | None:
    """Where the header in `buffer` ends; None while that is not known. Raises ProtocolError."""
    if buffer[:1] == _SIGNATURE1[:1]:
        if not _agree(buffer, _SIGNATURE1):
            raise ProtocolError(_no_header(buffer))
        end = buffer.find(b"\r\n", 0, _LONGEST1)
        if end >= 0:
            return end + 2
        if len(buffer) >= _LONGEST1:
            raise ProtocolError(f"a PROXY line of more than {_LONGEST1} bytes")
        return None
    if not _agree(buffer, _SIGNATURE2):
        raise ProtocolError(_no_header(buffer))
    if len(buffer) < _FIXED2:
        return None
    end = _FIXED2 + int.from_bytes(buffer[14:16])
    if end > KEPT:
        raise ProtocolError(f"a PROXY header of {end:,} bytes; {KEPT:,} are read")
    return end if len(buffer) >= end else None


def _agree(buffer: bytearray, signature: bytes) -> bool:
    length = min(len(buffer), len(signature))
    return buffer[:length] == signature[:length]


def _no_header(buffer: bytearray) -> str:
    return f"expected a PROXY header, got `{printable(buffer[:16].decode('latin-1'))}`"


def _read(header: bytes) -> Header:
    return _read1(header) if header[:1] == _SIGNATURE1[:1] else _read2(header)


def _read1(line: bytes) -> Header:
    """2.1: `PROXY TCP4 192.0.2.1 192.0.2.2 51000 443`."""
    try:
        words = line[:-2].decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProtocolError("a PROXY line that is not ASCII") from None
    if words[1] == "UNKNOWN":
        # "The receiver must ignore anything presented before the CRLF is found."
        return Header()
    length = _FAMILY_LENGTH1.get(words[1])
    if length is None:
        raise ProtocolError(f"expected TCP4, TCP6 or UNKNOWN, got `{printable(words[1])}`")
    if len(words) != 6:
        raise ProtocolError(f"expected 6 words in a PROXY line, got {len(words)}")
    near, far = (_address1(word, length) for word in words[2:4])
    near_port, far_port = (_port1(word) for word in words[4:])
    return Header(_source(near, near_port), Endpoint(unmap(far), far_port))


def _address1(word: str, length: int) -> bytes:
    try:
        address = parse_address(word)
    except AddressError as error:
        raise ProtocolError(str(error)) from None
    # TCP6 may hold IPv4-mapped addresses, which are IPv4 by now; TCP4 holds nothing but IPv4.
    if (":" in word) != (length == 16):
        raise ProtocolError(f"`{word}` does not fit the family of its PROXY line")
    return address


def _port1(word: str) -> int:
    if not (word.isdigit() and len(word) <= 5) or (word[0] == "0" and word != "0") or int(word) > 65535:
        raise ProtocolError(f"`{printable(word)}` is not a port")
    return int(word)


def _read2(header: bytes) -> Header:
    command, family = header[12], header[13]
    if command == _LOCAL:
        # "The receiver … must use the real connection endpoints and discard the protocol block."
        return Header()
    if command != _PROXY:
        raise ProtocolError(f"expected 0x20 or 0x21 for version and command, got 0x{command:02x}")
    if family == _UNSPEC:
        return _with_tlvs(header, _FIXED2, None, None)
    length = _ADDRESS_LENGTH.get(family)
    if length is None:
        raise ProtocolError(f"expected TCP over IPv4 or IPv6 in a PROXY header, got 0x{family:02x}")
    ports = _FIXED2 + 2 * length
    behind = ports + 4
    if len(header) < behind:
        raise ProtocolError(f"expected {behind - _FIXED2} bytes of addresses, got {len(header) - _FIXED2}")
    near, far = header[_FIXED2 : _FIXED2 + length], header[_FIXED2 + length : ports]
    near_port = int.from_bytes(header[ports : ports + 2])
    far_port = int.from_bytes(header[ports + 2 : behind])
    return _with_tlvs(header, behind, _source(near, near_port), Endpoint(unmap(far), far_port))


def _with_tlvs(header: bytes, at: int, source: Endpoint | None, destination: Endpoint | None) -> Header:
    """The header whose TLVs begin `at`."""
    authority: Host | None = None
    inner: Endpoint | None = None
    while at < len(header):
        behind = at + 3 + int.from_bytes(header[at + 1 : at + 3])
        if behind > len(header):
            raise ProtocolError("a TLV that does not end within its PROXY header")
        kind, value = header[at], header[at + 3 : behind]
        if kind == _AUTHORITY:
            if authority is not None:
                raise ProtocolError("two names in one PROXY header")
            authority = _authority(value)
        elif kind == _INNER:
            if inner is not None:
                raise ProtocolError("two inner destinations in one PROXY header")
            inner = _inner(value)
        at = behind
    return Header(source, destination, authority, inner)


def _authority(value: bytes) -> Host:
    try:
        return parse_host(value.decode("ascii"))
    except UnicodeDecodeError:
        raise ProtocolError(f"`{printable(value.decode('latin-1'))}` is not a host name") from None
    except AddressError as error:
        raise ProtocolError(str(error)) from None


def _inner(value: bytes) -> Endpoint:
    if len(value) < _INNER_LENGTH:
        raise ProtocolError(f"expected {_INNER_LENGTH} bytes of an inner destination, got {len(value)}")
    if value[0] != _INNER_VERSION:
        raise ProtocolError(f"expected version {_INNER_VERSION} of an inner destination, got {value[0]}")
    return Endpoint(unmap(value[3:19]), int.from_bytes(value[1:3]))


def _source(address: bytes, port: int) -> Endpoint | None:
    return Endpoint(unmap(address), port) if port or any(address) else None


# --- writing


def _packed_pair(
    source: Endpoint | None, destination: Endpoint
) -> tuple[tuple[Address, int], tuple[Address, int]] | None:
    """Both ends in one family, IPv4 as IPv4-mapped beside IPv6; None without a source."""
    if source is None or isinstance(source.host, str):
        return None
    near = source.host
    far = bytes(len(near)) if isinstance(destination.host, str) else destination.host
    if len(near) != len(far):
        near, far = (MAPPED_PREFIX + each if len(each) == 4 else each for each in (near, far))
    return (near, source.port), (far, destination.port)


def _text(address: bytes) -> str:
    if address.startswith(MAPPED_PREFIX) and len(address) == 16:
        return f"::ffff:{address_text(address[12:])}"
    return address_text(address)


def _tlv(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2) + value
