"""Sockets are made in the namespaces asked for, however they change; no thread of ours stays there."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.rig import Namespace, Network, Program
from urelay.errors import StartError
from urelay.namespaces import visit
from urelay.namespaces.visit import Visitor

_SO_NETNS_COOKIE = 71
STREAM = (socket.AF_INET, socket.SOCK_STREAM)


@pytest.fixture
def visitor() -> Iterator[Visitor]:
    """One whose thread is over afterwards."""
    threads = set(threading.enumerate())
    with contextlib.closing(Visitor()) as made:
        yield made
    assert set(threading.enumerate()) <= threads


@pytest.fixture
def net() -> Iterator[Network]:
    with Network() as network:
        yield network


def cookie(sock: socket.socket) -> bytes:
    """What identifies the namespace a socket is in."""
    return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)


def cookie_of(namespace: Namespace) -> bytes:
    with namespace.call(socket.socket) as sock:
        return cookie(sock)


def homes() -> set[str]:
    """The namespaces that threads of this process are in."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.add(os.readlink(task / "ns/net"))
    return found


@pytest.mark.netns
def test_a_thousand_sockets_at_random_are_each_in_the_namespace_asked_for(
    visitor: Visitor, net: Network
) -> None:
    """R23: ten namespaces, by name and by path, from many threads at once."""
    namespaces = [net.namespace(f"n{number}") for number in range(10)]
    cookies = {one.name: cookie_of(one) for one in namespaces}
    assert len(set(cookies.values())) == 10
    before = len(os.listdir("/proc/self/fd"))
    rng = random.Random(23)
    orders = [rng.choice(namespaces) for _ in range(1000)]

    def right(one: Namespace) -> bool:
        where = one.name if one.name[-1] in "02468" else one.path
        family = socket.AF_INET6 if one.name[-1] in "012" else socket.AF_INET
        with visitor.socket(where, family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            return cookie(sock) == cookies[one.name] and sock.family == family and sock.gettimeout() == 0

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(right, orders))
    assert homes() == {os.readlink("/proc/self/ns/net")}
    # The thread's own way home is all that is open.
    assert len(os.listdir("/proc/self/fd")) == before + 1


@pytest.mark.netns
def test_a_namespace_that_is_deleted_fails_alone_and_may_come_back(visitor: Visitor) -> None:
    with Network() as net:
        other = net.namespace("other")
        gone = Namespace("gone")
        visitor.socket(gone.name, *STREAM).close()
        first = cookie_of(gone)
        gone.close()
        with pytest.raises(StartError, match=f"there is no network namespace called `{gone.name}`"):
            visitor.socket(gone.name, *STREAM)
        visitor.socket(other.name, *STREAM).close()
        again = net.namespace("again")
        again_path = Path("/run/netns") / again.name
        alias = again_path.with_name(gone.name)
        alias.symlink_to(again_path)
        try:
            with visitor.socket(gone.name, *STREAM) as sock:
                assert cookie(sock) == cookie_of(again) != first
        finally:
            alias.unlink()


@pytest.mark.parametrize(
    ("netns", "why"),
    [
        ("urt-nowhere", "there is no network namespace called `urt-nowhere`"),
        ("/nonexistent/ns", "there is no network namespace `/nonexistent/ns`"),
        ("/dev/null", "`/dev/null` is not a network namespace"),
        ("/proc/self/ns/uts", "`/proc/self/ns/uts` is not a network namespace"),
    ],
)
def test_what_is_no_namespace_is_told_and_the_next_may_be_one(visitor: Visitor, netns: str, why: str) -> None:
    for _ in range(2):
        with pytest.raises(StartError, match=why):
            visitor.socket(netns, *STREAM)
    assert homes() == {os.readlink("/proc/self/ns/net")}


@pytest.mark.netns
def test_a_visitor_that_cannot_come_home_is_replaced(
    visitor: Visitor, net: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = net.namespace("there")
    visitor.socket(there.name, *STREAM).close()
    lost = visitor._thread
    real, calls = visit.set_namespace, [0]

    def no_way_back(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise visit.EnterError(errno.EPERM, "no")
        real(descriptor)

    monkeypatch.setattr(visit, "set_namespace", no_way_back)
    with visitor.socket(there.name, *STREAM) as sock:
        assert cookie(sock) == cookie_of(there)
    assert lost is not None
    lost.join(10)
    assert not lost.is_alive()
    visitor.socket(there.name, *STREAM).close()
    assert homes() == {os.readlink("/proc/self/ns/net")}


def test_a_socket_the_kernel_does_not_have_is_its_error(visitor: Visitor) -> None:
    with pytest.raises(OSError, match="not supported") as caught:
        visitor.socket("/proc/self/ns/net", 45, socket.SOCK_STREAM)
    assert caught.value.errno == errno.EAFNOSUPPORT


# --- a namespace of another user namespace

_DIALS = """
import os, signal, socket, subprocess, sys
from urelay.errors import StartError
from urelay.namespaces import visit
from urelay.namespaces.visit import Visitor

def cookie(sock):
    with sock:
        assert sock.gettimeout() == 0
        return sock.getsockopt(socket.SOL_SOCKET, 71, 8)

def children():
    return open(f"/proc/self/task/{os.getpid()}/children").read().split() + [
        one for task in os.listdir("/proc/self/task")
        for one in open(f"/proc/self/task/{task}/children").read().split() if int(task) != os.getpid()
    ]

there, kind = sys.argv[1], (socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
visitor = Visitor()
before = len(os.listdir("/proc/self/fd"))
found = {cookie(visitor.socket(there, *kind)) for _ in range(200)}
assert len(found) == 1 and found != {cookie(socket.socket(*kind))}
child, = children()
try:
    visitor.socket(there, 45, socket.SOCK_STREAM)
except OSError as error:
    assert error.errno == 97, error
os.kill(int(child), signal.SIGKILL)
try:
    visitor.socket(there, *kind)
except StartError as error:
    print(error)
assert cookie(visitor.socket(there, *kind)) in found
assert [child] != children() != []
visit._IDLE_S = 0.01
assert cookie(visitor.socket(there, *kind)) in found
while children():
    pass
assert cookie(visitor.socket(there, *kind)) in found
visitor.close()
assert children() == [] and len(os.listdir("/proc/self/fd")) == before
homes = {os.readlink(f"/proc/self/task/{task}/ns/net") for task in os.listdir("/proc/self/task")}
assert homes == {os.readlink("/proc/self/ns/net")}
print("done")
"""


@pytest.mark.netns
def test_where_no_thread_may_go_a_child_goes_and_stays() -> None:
    """It is replaced when it has died, and called back when nobody needs it."""
    owner = Program(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "echo up; exec sleep 600"])
    owner.wait_line("up")
    try:
        done = subprocess.run(
            [
                "setpriv", "--bounding-set", "-sys_admin",
                sys.executable, "-c", _DIALS, f"/proc/{owner.pid}/ns/net",
            ],
            capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2],
        )  # fmt: skip
    finally:
        owner.stop()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["the child in the network namespace does not answer", "done"]
