"""bpf(2) as far as a socket lookup program needs it: maps, a program, its link to a namespace.

The kernel's own interface, by ctypes: no compiler, no library, nothing pinned in a file system. What
is made here lives as long as its descriptor is open somewhere, and is gone when the process is,
however it ends.

`steering_program` is the program, three dozen instructions that run once for each connection
to be, when no socket of its own is there yet (linux/bpf.h, BPF_PROG_TYPE_SK_LOOKUP, Linux 5.9):

    not TCP                              as always
    an address in the map `own`          as always: the programs of the namespace keep it
    everything else                      the socket in the map `sockets`, whatever the port

`own` is a trie of prefixes over 16 bytes, IPv4 in its mapped form, so one lookup answers for both
families and the whole of 127.0.0.0/8 is one entry.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from urelay.net.address import Address, Prefix

_SYSTEM_CALL: Final = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "armv7l": 386,
    "i686": 357,
    "ppc64le": 361,
    "s390x": 351,
}
"""The number of bpf(2), by what uname says"""

# enum bpf_cmd
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD, _LINK_CREATE = 0, 2, 3, 5, 28
# enum bpf_map_type, bpf_prog_type, bpf_attach_type
_LPM_TRIE, _SOCKMAP = 11, 15
_SK_LOOKUP = 30
_ATTACH_SK_LOOKUP = 36
_NO_PREALLOC = 1
"""What the kernel insists on for a trie"""
_MOST_OWN = 65536

_LICENSE = ctypes.create_string_buffer(b"ISC")
_PREFIX = struct.Struct("=I16s")
_MAPPED = bytes(10) + b"\xff\xff"


def address_map() -> int:
    """A descriptor of an empty map of prefixes; raises OSError."""
    attributes = struct.pack("=IIIII", _LPM_TRIE, _PREFIX.size, 4, _MOST_OWN, _NO_PREALLOC)
    return _bpf(_MAP_CREATE, attributes)


def socket_map() -> int:
    """A descriptor of a map with room for one socket; raises OSError."""
    return _bpf(_MAP_CREATE, struct.pack("=IIIII", _SOCKMAP, 4, 4, 1, 0))


def put_address(where: int, prefix: Prefix) -> None:
    """Add a prefix to a map of prefixes; raises OSError."""
    _put(where, _trie_key(prefix), bytes(4))


def drop_address(where: int, prefix: Prefix) -> None:
    """Take a prefix out of a map of prefixes, if it is there; raises OSError."""
    key = ctypes.create_string_buffer(_trie_key(prefix))
    try:
        _bpf(_MAP_DELETE, struct.pack("=IIQQ", where, 0, ctypes.addressof(key), 0))
    except FileNotFoundError:
        return


def put_socket(where: int, sock: int) -> None:
    """Make a listening socket the one in a map of sockets; raises OSError."""
    _put(where, bytes(4), struct.pack("=I", sock))


def load(program: bytes) -> int:
    """A descriptor of a loaded program; raises OSError, PermissionError without CAP_BPF."""
    instructions = ctypes.create_string_buffer(program, len(program))
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        *(_SK_LOOKUP, len(program) // 8, ctypes.addressof(instructions), ctypes.addressof(_LICENSE)),
        *(0, 0, 0, 0, 0, b"urelay", 0, _ATTACH_SK_LOOKUP),
    )
    return _bpf(_PROG_LOAD, attributes)


def attach(program: int, netns: int) -> int:
    """A descriptor of the link that holds a program to a namespace: closing it ends it; raises OSError."""
    return _bpf(_LINK_CREATE, struct.pack("=IIII", program, netns, _ATTACH_SK_LOOKUP, 0))


def steering_program(own: int, sockets: int) -> bytes:
    """The instructions, for maps by their descriptors."""
    return _assemble(list(_rows(own, sockets)))


# --- instructions: linux/bpf.h, and struct bpf_sk_lookup for the offsets

_FAMILY, _PROTOCOL, _LOCAL_IP4, _LOCAL_IP6 = 8, 12, 40, 44
_LOOKUP_ELEM, _SK_RELEASE, _SK_ASSIGN = 1, 86, 124
_MAPPED_HALF = int.from_bytes(b"\0\0\xff\xff", sys.byteorder, signed=True)
_PASS = 1

# name: code; what follows it in a row is the register it changes, the one it reads, where, a number.
_CODES: Final = {
    "copy": 0xBF, "set": 0xB7, "add": 0x07, "load": 0x61, "store": 0x63, "store number": 0x62,
    "store long number": 0x7A, "map": 0x18, "if equal": 0x15, "if not equal": 0x55, "go": 0x05,
    "call": 0x85, "end": 0x95,
}  # fmt: skip

_Row: TypeAlias = "tuple[str, int, int, int | str, int]"


def _rows(own: int, sockets: int) -> Iterator[_Row | str]:
    """The program: rows, and the labels (alone) that jumps name as their `where`.

    The trie's key lies at r10-20, its length and 16 bytes; the key of the socket at r10-24.
    """
    yield "copy", 6, 1, 0, 0
    yield "load", 2, 6, _PROTOCOL, 0
    yield "if not equal", 2, 0, "as always", socket.IPPROTO_TCP
    yield "store number", 10, 0, -20, 128
    yield "load", 2, 6, _FAMILY, 0
    yield "if equal", 2, 0, "ipv4", socket.AF_INET
    for word in range(0, 16, 4):
        yield "load", 2, 6, _LOCAL_IP6 + word, 0
        yield "store", 10, 2, -16 + word, 0
    yield "go", 0, 0, "is it ours", 0
    yield "ipv4"
    yield "store long number", 10, 0, -16, 0
    yield "store number", 10, 0, -8, _MAPPED_HALF
    yield "load", 2, 6, _LOCAL_IP4, 0
    yield "store", 10, 2, -4, 0
    yield "is it ours"
    yield "map", 1, 0, 0, own
    yield "copy", 2, 10, 0, 0
    yield "add", 2, 0, 0, -20
    yield "call", 0, 0, 0, _LOOKUP_ELEM
    yield "if not equal", 0, 0, "as always", 0
    yield "store number", 10, 0, -24, 0
    yield "map", 1, 0, 0, sockets
    yield "copy", 2, 10, 0, 0
    yield "add", 2, 0, 0, -24
    yield "call", 0, 0, 0, _LOOKUP_ELEM
    yield "if equal", 0, 0, "as always", 0  # the relay has closed it
    yield "copy", 7, 0, 0, 0
    yield "copy", 1, 6, 0, 0
    yield "copy", 2, 7, 0, 0
    yield "set", 3, 0, 0, 0
    yield "call", 0, 0, 0, _SK_ASSIGN
    yield "copy", 1, 7, 0, 0
    yield "call", 0, 0, 0, _SK_RELEASE
    yield "as always"
    yield "set", 0, 0, 0, _PASS
    yield "end", 0, 0, 0, 0


def _assemble(rows: Sequence[_Row | str]) -> bytes:
    labels: dict[str, int] = {}
    place = 0
    for row in rows:
        if isinstance(row, str):
            labels[row] = place
        else:
            place += _size(row)
    parts = []
    place = 0
    for row in rows:
        if isinstance(row, str):
            continue
        place += _size(row)
        name, to, source, where, number = row
        # A jump counts from the instruction behind it.
        offset = labels[where] - place if isinstance(where, str) else where
        if name == "map":
            # BPF_LD_IMM64 takes two places; BPF_PSEUDO_MAP_FD (1) says that the number is a descriptor.
            parts += [_instruction(_CODES[name], to, 1, 0, number), bytes(8)]
        else:
            parts.append(_instruction(_CODES[name], to, source, offset, number))
    return b"".join(parts)


def _size(row: _Row) -> int:
    return 2 if row[0] == "map" else 1


def _instruction(code: int, to: int, source: int, offset: int, number: int) -> bytes:
    registers = to | source << 4 if sys.byteorder == "little" else to << 4 | source
    return struct.pack("=BBhi", code, registers, offset, number)


def _trie_key(prefix: Prefix) -> bytes:
    address: Address = prefix.first.to_bytes(4 if prefix.family == 4 else 16)
    if prefix.family == 4:
        return _PREFIX.pack(prefix.length + 96, _MAPPED + address)
    return _PREFIX.pack(prefix.length, address)


def _put(where: int, key: bytes, value: bytes) -> None:
    keys, values = ctypes.create_string_buffer(key), ctypes.create_string_buffer(value)
    attributes = struct.pack("=IIQQQ", where, 0, ctypes.addressof(keys), ctypes.addressof(values), 0)
    _bpf(_MAP_UPDATE, attributes)


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSTEM_CALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = libc.syscall(ctypes.c_long(number), command, buffer, len(attributes))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
