"""Unix socket paths with fields: `/run/web/{listener}-{port}.sock`.

A field is `{address}`, `{low32}` (its last four bytes, as eight hexadecimal digits: what
socketbox-relay puts behind its `-u`), `{port}`, `{name}`, `{listener}` or `{source}`. Beside them
stand the forms of the tools urelay comes from: `#//0_` to `#//7_` are the 16-bit groups of the
destination address (an IPv4 address as its IPv4-mapped form, so that its halves are `#//6_` and
`#//7_`) and `#//P_` is the port, each as a decimal of five digits.

Some values come from clients, and a path names a file. So a value is never empty, holds nothing but
`[0-9A-Za-z.:_-]`, does not begin with a dot and holds no `..`: whatever a client says, it chooses
among the sockets in the folder the template names and never climbs out of it.
"""

from __future__ import annotations

import re

from urelay.errors import AddressError
from urelay.net.address import MAPPED_PREFIX, Address, address_text, printable

FIELDS = ("address", "low32", "port", "name", "listener", "source")
"""What may stand in braces."""

LONGEST = 107
"""Bytes in a unix socket path: sun_path has 108, the last of them is NUL (unix(7))."""

_FIELD = re.compile(r"\{([^{}]*)\}|#//([0-7P])_")
_SAFE = re.compile(r"(?!\.)[0-9A-Za-z._:-]+")


def fill(
    template: str,
    *,
    address: Address | None = None,
    port: int | None = None,
    name: str | None = None,
    listener: str | None = None,
    source: Address | None = None,
) -> str:
    """The path `template` stands for with the facts of one connection.

    Raises AddressError when a field has no value here (a `{name}` when the client gave an address),
    when a value could not stand in a path safely, or when the path is longer than LONGEST bytes.
    """
    values = {
        "address": None if address is None else address_text(address),
        "low32": None if address is None else address[-4:].hex(),
        "port": None if port is None else str(port),
        "name": name,
        "listener": listener,
        "source": None if source is None else address_text(source),
    }

    def value(match: re.Match[str]) -> str:
        if match[2] is not None:
            return _group(match[2], address, port)
        return _checked(match[1], values.get(match[1]))

    path = _FIELD.sub(value, template)
    if len(path.encode()) > LONGEST:
        raise AddressError(
            f"`{printable(path)}` is {len(path.encode())} bytes; {LONGEST} fit in a socket path"
        )
    return path


def _checked(field: str, value: str | None) -> str:
    if not value:
        raise AddressError(f"this connection has no {{{printable(field)}}} for the path")
    if not _SAFE.fullmatch(value) or ".." in value:
        raise AddressError(f"`{printable(value)}` cannot stand for {{{field}}} in a path")
    return value


def _group(which: str, address: Address | None, port: int | None) -> str:
    if which == "P":
        if port is None:
            raise AddressError("this connection has no port for `#//P_` in the path")
        return f"{port:05d}"
    if address is None:
        raise AddressError(f"this connection has no address for `#//{which}_` in the path")
    packed = address if len(address) == 16 else MAPPED_PREFIX + address
    at = 2 * int(which)
    return f"{int.from_bytes(packed[at : at + 2]):05d}"
