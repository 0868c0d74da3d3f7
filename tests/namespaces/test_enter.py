"""A socket is opened in another namespace; no thread of the process is ever left there."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from urelay.errors import StartError
from urelay.namespaces import enter


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of a namespace of this test's own, with `lo` up."""
    name = f"urt-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def listen() -> socket.socket:
    """A listening socket on a port of 127.0.0.1 that the kernel chooses."""
    return socket.create_server(("127.0.0.1", 0))


def connects_from_here(port: int) -> bool:
    """Whether something listens on that port of this namespace's loopback."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def namespaces_of_threads() -> set[str]:
    """The network namespaces that threads of this process are in."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found.add(os.readlink(task / "ns/net"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread ended meanwhile
    return found


@pytest.mark.netns
def test_a_socket_opened_by_name_listens_there_and_not_here(netns: str) -> None:
    with enter.call_inside(netns, listen) as server:
        port = server.getsockname()[1]
        assert not connects_from_here(port)
        with enter.call_inside(netns, socket.socket) as client:
            client.connect(("127.0.0.1", port))
            accepted, _ = server.accept()
            accepted.close()


@pytest.mark.netns
def test_a_path_is_as_good_as_a_name(netns: str) -> None:
    by_path = enter.call_inside(f"/run/netns/{netns}", lambda: os.readlink("/proc/thread-self/ns/net"))
    by_name = enter.call_inside(netns, lambda: os.readlink("/proc/thread-self/ns/net"))
    assert by_path == by_name != os.readlink("/proc/self/ns/net")


@pytest.mark.netns
def test_no_thread_stays_in_the_namespace(netns: str) -> None:
    home = os.readlink("/proc/self/ns/net")
    for _ in range(50):
        enter.call_inside(netns, listen).close()
        assert os.readlink("/proc/thread-self/ns/net") == home
    # A joined thread may take the kernel another moment to remove.
    deadline = time.monotonic() + 20
    while namespaces_of_threads() != {home}:
        assert time.monotonic() < deadline, "a thread stayed in the other namespace"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("netns")]


@pytest.mark.netns
def test_what_the_callable_raises_is_raised_here(netns: str) -> None:
    taken = enter.call_inside(netns, listen)
    address = taken.getsockname()

    def bind_again() -> socket.socket:
        second = socket.socket()
        try:
            second.bind(address)
        except OSError:
            second.close()
            raise
        return second

    with taken, pytest.raises(OSError) as caught:
        enter.call_inside(netns, bind_again)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.netns
def test_a_namespace_made_again_is_another_one(netns: str) -> None:
    before = enter.identity(netns)
    assert enter.identity(f"/run/netns/{netns}") == before
    other = f"{netns}-b"
    subprocess.run(["ip", "netns", "add", other], check=True)
    try:
        assert enter.identity(other) != before
    finally:
        subprocess.run(["ip", "netns", "del", other], check=True)


@pytest.mark.parametrize(
    ("netns", "message"),
    [
        pytest.param(
            "no-such-place",
            "there is no network namespace called `no-such-place` (/run/netns/no-such-place is missing)",
            id="name",
        ),
        pytest.param("/proc/0/ns/net", "there is no network namespace `/proc/0/ns/net`", id="path"),
        pytest.param("/etc/passwd", "`/etc/passwd` is not a network namespace", id="plain file"),
        pytest.param("/", "`/` is not a network namespace", id="folder"),
        pytest.param("/dev/null", "`/dev/null` is not a network namespace", id="device"),
        pytest.param("/proc/self/ns/mnt", "`/proc/self/ns/mnt` is not a network namespace", id="mount"),
        pytest.param(
            "/a\0b", "the network namespace `/a\\x00b` cannot be opened: a path holds no NUL", id="nul"
        ),
    ],
)
def test_what_is_no_namespace_is_named(netns: str, message: str) -> None:
    with pytest.raises(StartError) as caught:
        enter.call_inside(netns, listen)
    assert str(caught.value) == message


def test_a_fifo_in_the_way_does_not_hold_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(StartError, match="is not a network namespace"):
        enter.call_inside(str(tmp_path / "fifo"), listen)


@pytest.mark.netns
def test_without_the_right_to_enter_it_says_which_is_missing(netns: str) -> None:
    script = (
        "import sys\n"
        "from urelay.namespaces import enter\n"
        "from urelay.errors import StartError\n"
        "try: enter.call_inside(sys.argv[1], int)\n"
        "except StartError as error: print(error)\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-c", script, netns],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout == (
        f"the network namespace `/run/netns/{netns}` may not be entered without CAP_SYS_ADMIN\n"
    )
