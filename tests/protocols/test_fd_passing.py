"""What stands round a descriptor: the vectors of socketbox and HAProxy, and nothing else passes."""

from __future__ import annotations

import array
import contextlib
import socket

import pytest

from tests.mutations import COUNT, mutations
from urelay.errors import ProtocolError
from urelay.protocols import fd_passing
from urelay.protocols.fd_passing import check_granted, descriptors, read_registration, registration


def rights(*numbers: int, cut: int = 0) -> tuple[int, int, bytes]:
    data = array.array("i", numbers).tobytes()
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, data[: len(data) - cut]


@pytest.mark.parametrize(
    ("ancillary", "found"),
    [
        pytest.param([], [], id="none"),
        pytest.param([rights(7)], [7], id="one"),
        pytest.param([rights(7, 8, 9)], [7, 8, 9], id="several"),
        pytest.param([rights(7), rights(8)], [7, 8], id="in-several-messages"),
        pytest.param([rights(7, 8, cut=1)], [7], id="cut-short"),
        pytest.param([rights(7, cut=3)], [], id="nothing-whole"),
        pytest.param([(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12)), rights(7)], [7], id="others"),
        pytest.param([(socket.IPPROTO_IP, socket.SCM_RIGHTS, bytes(4))], [], id="another-level"),
    ],
)
def test_every_descriptor_is_found(ancillary: list[tuple[int, int, bytes]], found: list[int]) -> None:
    assert descriptors(ancillary) == found


def test_the_limits_are_the_kernel_s() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        socket.send_fds(left, [fd_passing.HAND_OVER], [left.fileno()] * fd_passing.DESCRIPTOR_LIMIT)
        room = socket.CMSG_SPACE(fd_passing.DESCRIPTOR_SIZE * fd_passing.DESCRIPTOR_LIMIT)
        data, ancillary, flags, _ = right.recvmsg(fd_passing.MESSAGE_LIMIT, room)
        found = descriptors(ancillary)
        for number in found:
            socket.close(number)
        assert (data, len(found), flags & socket.MSG_CTRUNC) == (b"\0", fd_passing.DESCRIPTOR_LIMIT, 0)
        with pytest.raises(OSError):
            socket.send_fds(left, [b"\0"], [left.fileno()] * (fd_passing.DESCRIPTOR_LIMIT + 1))


def test_a_registration_as_it_is_on_the_wire() -> None:
    assert registration(7) == bytes.fromhex("0100000000000007")
    assert registration(0xFFFFFFFF) == bytes.fromhex("01000000ffffffff")
    for slot in (0, 7, 0xFFFFFFFF):
        assert read_registration(registration(slot)) == slot
    for slot in (-1, 1 << 32):
        with pytest.raises(ValueError):
            registration(slot)
    assert (fd_passing.GRANTED.hex(), fd_passing.DELIVERY.hex()) == ("80000000", "03000000")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (b"", "got 0"),
        (registration(1)[:-1], "got 7"),
        (registration(1) + b"\0", "got 9"),
        (b"\x02" + registration(1)[1:], "got 02 00 00 00"),
        (b"\x01\x01" + registration(1)[2:], "got 01 01 00 00"),
        (b"\x01\0\0\x01" + registration(1)[4:], "got 01 00 00 01"),
    ],
)
def test_what_is_no_registration_is_refused(message: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        read_registration(message)


def test_only_the_one_reply_is_a_grant() -> None:
    check_granted(fd_passing.GRANTED)
    for reply in (b"", b"\x80", b"\x80\0\0\1", b"\x81\0\0\0", fd_passing.GRANTED + b"\0"):
        with pytest.raises(ProtocolError, match="refused"):
            check_granted(reply)


def test_mutated_registrations_raise_protocol_errors_only() -> None:
    granted = 0
    for _, data in mutations([registration(7), registration(0xFFFFFFFF), fd_passing.GRANTED]):
        with contextlib.suppress(ProtocolError):
            assert registration(read_registration(data)) == data
            granted += 1
        with contextlib.suppress(ProtocolError):
            check_granted(data)
            assert data == fd_passing.GRANTED
    assert granted > COUNT / 100
