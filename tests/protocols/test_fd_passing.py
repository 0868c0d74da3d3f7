"""What stands round a descriptor: the vectors of socketbox and HAProxy, and nothing else passes."""

from __future__ import annotations

import array
import socket

import pytest

from urelay.protocols import fd_passing
from urelay.protocols.fd_passing import descriptors


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
