"""Work in a network namespace of another user namespace, by a child made for it.

setns(2) lets nobody into a user namespace who has threads, and the relay has some. So another Python
is started; it enters the user namespace, whose owner we are, has every capability there, enters the
network namespace, does one thing, answers and ends. One that makes sockets for dials (`Ferry`) makes
as many as it is asked for, because starting an interpreter takes a thousand times what a socket does.

The question goes in as an argument and the answer comes back as one packet: JSON, and for a socket its
descriptor beside it. Nothing else is ever taken from the child: once it is inside, whoever rules that
user namespace may trace it and make it say anything.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from urelay.errors import StartError
from urelay.net.address import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PATIENCE_S = 20.0
"""How long a child may take: it starts an interpreter, and perhaps `nft`"""

_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_LONGEST_ANSWER = 1 << 20
_LONGEST_QUESTION = 256
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from urelay.namespaces import child; child.main()"
)

Answer = dict[str, Any]


def socket_by_child(owner: int, netns: int, family: int, kind: int, protocol: int) -> socket.socket:
    """A new socket of a network namespace that belongs to the user namespace `owner`.

    Both are descriptors. Raises StartError, and OSError when the socket cannot be made.
    """
    _, descriptors = _ask(owner, netns, "socket", [family, kind & ~_FLAGS, protocol])
    return _only_socket(descriptors, family, kind)


class Ferry:
    """A child that stays, and makes sockets in the one namespace. Must be closed, which ends it."""

    def __init__(self, owner: int, netns: int) -> None:
        """The descriptors are those of `socket_by_child`. Raises OSError."""
        self._process, self._channel = _start(owner, netns, "sockets", None)

    def socket(self, family: int, kind: int) -> socket.socket:
        """A new socket. Raises StartError, after which the child is of no use, and OSError."""
        try:
            self._channel.send(json.dumps([family, kind & ~_FLAGS, 0]).encode())
            data, descriptors = _receive(self._channel)
        except OSError:  # what the kernel refuses the child comes as its answer
            raise StartError("the child in the network namespace does not answer") from None
        _read(data, descriptors)
        return _only_socket(descriptors, family, kind)

    def close(self) -> None:
        """End the child."""
        self._channel.close()
        self._process.kill()
        self._process.wait()


def _only_socket(descriptors: list[int], family: int, kind: int) -> socket.socket:
    """The socket that came, if it is what was asked for. Raises StartError."""
    if len(descriptors) != 1:
        _close(descriptors)
        raise StartError("the child that entered the network namespace handed over no socket")
    try:
        sock = socket.socket(fileno=descriptors[0])
    except OSError:
        _close(descriptors)
        raise StartError("the child that entered the network namespace handed over no socket") from None
    sock.setblocking(not kind & socket.SOCK_NONBLOCK)
    if (sock.family, sock.type) != (family, kind & ~_FLAGS):
        sock.close()
        raise StartError("the child that entered the network namespace handed over another socket")
    return sock


def ask_child(owner: int, netns: int, what: str, about: Mapping[str, Any]) -> Answer:
    """What the function called `what` in urelay.namespaces.chores answers there; raises StartError."""
    answer, descriptors = _ask(owner, netns, what, about)
    _close(descriptors)
    return answer


def _start(owner: int, netns: int, what: str, about: object) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A child, and our end of the channel to it. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    handed = (owner, netns, theirs.fileno())
    with theirs:
        try:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-c",
                    _START,
                    json.dumps(sys.path),
                    json.dumps([*handed, what, about]),
                ],
                pass_fds=handed,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        except BaseException:
            ours.close()
            raise
    ours.settimeout(PATIENCE_S)
    return process, ours


def _ask(owner: int, netns: int, what: str, about: object) -> tuple[Answer, list[int]]:
    process, ours = _start(owner, netns, what, about)
    with ours:
        try:
            data, descriptors = _receive(ours)
        except TimeoutError:
            raise StartError("the child that entered the network namespace did not answer") from None
        finally:
            process.kill()
            process.wait()
    return _read(data, descriptors), descriptors


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    numbers = array.array("i")
    room = socket.CMSG_SPACE(4 * numbers.itemsize)
    data, ancillary, _, _ = sock.recvmsg(_LONGEST_ANSWER, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    return data, numbers.tolist()


def _read(data: bytes, descriptors: list[int]) -> Answer:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if isinstance(answer, dict):
        if "error" not in answer and "errno" not in answer:
            return answer
        _close(descriptors)
        if isinstance(number := answer.get("errno"), int):
            raise OSError(number, os.strerror(number))
        raise StartError(printable(str(answer["error"]), 500))
    _close(descriptors)
    raise StartError("the child that entered the network namespace ended without an answer")


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


# --- the child


def main() -> None:
    """Do what the argument says, and answer on the descriptor that it names."""
    owner, netns, number, what, about = json.loads(sys.argv[2])
    with socket.socket(fileno=number) as channel:
        try:
            _go(owner, netns)
        except OSError as error:
            _answer(channel, {"errno": error.errno or errno.EIO})
            return
        if what != "sockets":
            _do(channel, what, about)
            return
        # Until whoever asks is gone, or needs no more.
        while question := channel.recv(_LONGEST_QUESTION):
            _do(channel, "socket", json.loads(question))


def _go(owner: int, netns: int) -> None:
    """Enter both namespaces. Raises OSError."""
    _enter(owner, _CLONE_NEWUSER)
    _enter(netns, _CLONE_NEWNET)
    with contextlib.suppress(OSError):
        # Programs that we start keep our capabilities only if we are the root of that namespace.
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _do(channel: socket.socket, what: str, about: Any) -> None:
    """One thing, and its answer."""
    try:
        if what == "socket":
            with socket.socket(*about) as made:
                _answer(channel, {}, made.fileno())
            return
        from urelay.namespaces.chores import CHORES

        chore: Callable[[Mapping[str, Any]], Answer] = CHORES[what]
        answer = chore(about)
    except StartError as error:
        answer = {"error": str(error)}
    except OSError as error:
        answer = {"errno": error.errno or errno.EIO}
    _answer(channel, answer)


def _answer(channel: socket.socket, answer: Answer, *descriptors: int) -> None:
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
    channel.sendmsg([json.dumps(answer).encode()], [rights] if descriptors else [])


if sys.version_info >= (3, 12):

    def _enter(descriptor: int, kind: int) -> None:
        os.setns(descriptor, kind)

else:

    def _enter(descriptor: int, kind: int) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, kind) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
