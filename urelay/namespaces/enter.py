"""Opens a socket in another network namespace while the process stays in its own.

A network namespace belongs to a *thread*, and a socket belongs for life to the namespace it was
made in. So a thread made for the purpose enters the namespace (setns(2)), opens the socket there
and ends; it never returns to a pool, so no later work can run in the wrong namespace, and nothing
has to be restored, so nothing can fail to be. The caller waits for it: entering and opening takes
tens of microseconds, and happens when the relay starts or reloads.

A namespace that belongs to another user namespace, as those of rootless containers do, can be
entered only by somebody who is in that one, which no process with threads can be. Its owner may
still: a short-lived child enters both and hands the socket over (urelay.namespaces.child).

A namespace is a *name* under /run/netns, as `ip netns` makes them, or a *path* (anything with a
`/`), such as /proc/PID/ns/net. Whatever it is, the kernel is asked whether it is a network
namespace before it is entered: the file may be anything.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from urelay.errors import StartError
from urelay.net.address import printable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

NAMED = "/run/netns"
"""Where `ip netns add` mounts the namespaces it names."""

_CLONE_NEWNET = 0x40000000
# NS_GET_NSTYPE, ioctl_nsfs(2): which CLONE_ flag would make a namespace like this one.
_NS_GET_NSTYPE = 0xB703
_NS_GET_USERNS = 0xB701


def call_inside(netns: str, function: Callable[[], T]) -> T:
    """What `function` returns when a thread of its own calls it inside `netns`.

    `function` must not keep the thread: whatever it starts would stay in the namespace.
    """
    with opened(netns) as descriptor:
        try:
            return _call(descriptor, function)
        except EnterError as error:
            raise start_error(netns, error) from None


def socket_inside(netns: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A new socket of the namespace, not bound to anything: the rest may be done from here.

    For what binding and setting options needs, the namespace's owner is as good as its root. Raises
    StartError as `call_inside` does, and OSError when the socket cannot be made.
    """
    import socket

    from urelay.namespaces.child import socket_by_child

    return _inside(
        netns,
        lambda: socket.socket(family, kind, protocol),
        lambda owner, descriptor: socket_by_child(owner, descriptor, family, kind, protocol),
    )


def chore_inside(netns: str | None, what: str, about: Mapping[str, object]) -> dict[str, Any]:
    """What the function called `what` in urelay.namespaces.chores answers in a namespace (None: here).

    Raises StartError, and OSError for what the kernel refuses.
    """
    from urelay.namespaces.child import ask_child
    from urelay.namespaces.chores import CHORES

    if netns is None:
        return CHORES[what](about)
    return _inside(
        netns,
        lambda: CHORES[what](about),
        lambda owner, descriptor: ask_child(owner, descriptor, what, about),
    )


def _inside(netns: str, on_a_thread: Callable[[], T], by_child: Callable[[int, int], T]) -> T:
    """One of the two: `by_child` gets a user namespace to enter first, and the network namespace."""
    with opened(netns) as descriptor:
        try:
            return _call(descriptor, on_a_thread)
        except EnterError as error:
            owner = foreign_owner(descriptor) if error.errno == errno.EPERM else None
            if owner is None:
                raise start_error(netns, error) from None
        try:
            return by_child(owner, descriptor)
        finally:
            os.close(owner)


def foreign_owner(descriptor: int) -> int | None:
    """A descriptor of the user namespace that a network namespace belongs to; None: it is our own,
    or one that we have no business with."""
    try:
        owner: int = fcntl.ioctl(descriptor, _NS_GET_USERNS)
    except OSError:
        return None
    if os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user")):
        os.close(owner)
        return None
    return owner


def _call(descriptor: int, function: Callable[[], T]) -> T:
    """What `function` returns on a thread that has entered the namespace; raises EnterError too."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def enter_and_call() -> None:
        try:
            set_namespace(descriptor)
            outcome.append(function())
        except BaseException as error:  # handed to the caller, whose error it is
            failure.append(error)

    # A daemon thread: an interrupted wait must not keep the process from ending.
    thread = threading.Thread(target=enter_and_call, name="netns", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def identity(netns: str) -> tuple[int, int]:
    """Device and inode of a namespace: the same pair is the same namespace while it exists.

    A name can come to mean another namespace when it is removed and added again. Raises StartError
    as `call_inside` does.
    """
    with opened(netns) as descriptor:
        status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def namespace_path(netns: str) -> str:
    """The file of a namespace: a path stays as it is, a name is looked up where `ip netns` keeps them."""
    return netns if "/" in netns else os.path.join(NAMED, netns)


class EnterError(OSError):
    """setns(2) failed, as opposed to what was done inside."""


@contextmanager
def opened(netns: str) -> Iterator[int]:
    """A descriptor of the namespace, known to be one. Raises StartError."""
    path = namespace_path(netns)
    try:
        # Without O_NONBLOCK a fifo put in the way would hold us for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise start_error(netns, error) from None
    try:
        try:
            kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
        except OSError:
            kind = 0
        if kind != _CLONE_NEWNET:
            raise StartError(f"`{printable(path)}` is not a network namespace")
        yield descriptor
    finally:
        os.close(descriptor)


def start_error(netns: str, error: Exception) -> StartError:
    """Why a namespace could not be opened or entered, in words for the person who must act."""
    path = printable(namespace_path(netns))
    if isinstance(error, EnterError):
        if error.errno == errno.EPERM:
            return StartError(f"the network namespace `{path}` may not be entered without CAP_SYS_ADMIN")
        return StartError(f"the network namespace `{path}` cannot be entered: {_reason(error)}")
    if isinstance(error, FileNotFoundError):
        if "/" in netns:
            return StartError(f"there is no network namespace `{path}`")
        return StartError(f"there is no network namespace called `{printable(netns)}` ({path} is missing)")
    return StartError(f"the network namespace `{path}` cannot be opened: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError):
        # In our own words: Python's differ from version to version.
        return "a path holds no NUL"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.lower()


if sys.version_info >= (3, 12):

    def set_namespace(descriptor: int) -> None:
        """Move this thread, and no other, into a network namespace."""
        try:
            os.setns(descriptor, _CLONE_NEWNET)
        except OSError as error:
            raise EnterError(error.errno, error.strerror) from None

else:

    def set_namespace(descriptor: int) -> None:
        """Move this thread, and no other, into a network namespace."""
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise EnterError(code, os.strerror(code))
