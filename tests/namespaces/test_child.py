"""Work in a namespace of another user namespace: done by a child, and its answer is never trusted."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.rig import Program
from urelay.errors import StartError
from urelay.namespaces import child, enter

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def rootless() -> Iterator[str]:
    """The path of a network namespace that belongs to a user namespace of ours."""
    owner = Program(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--net",
            "sh",
            "-c",
            "ip link set lo up; echo up; exec sleep 600",
        ]
    )
    owner.wait_line("up")
    yield f"/proc/{owner.pid}/ns/net"
    owner.stop()


def owned(path: str) -> tuple[int, int]:
    """Descriptors of a namespace's owner and of itself."""
    descriptor = os.open(path, os.O_RDONLY)
    owner = enter.foreign_owner(descriptor)
    assert owner is not None
    return owner, descriptor


def test_a_socket_is_made_there_and_bound_from_here(rootless: str) -> None:
    owner, netns = owned(rootless)
    before = len(os.listdir("/proc/self/fd"))
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    with child.socket_by_child(owner, netns, socket.AF_INET, kind, 0) as sock:
        assert (sock.family, sock.type, sock.getblocking()) == (socket.AF_INET, socket.SOCK_STREAM, False)
        assert not sock.get_inheritable()
        # A low port, and IP_TRANSPARENT: rights over that namespace, which its owner has.
        sock.setsockopt(socket.IPPROTO_IP, 19, 1)
        sock.bind(("127.0.0.1", 81))
        sock.listen()
        with enter.call_inside(rootless, socket.socket) as client:
            client.connect(("127.0.0.1", 81))
        with socket.socket() as here:
            assert here.connect_ex(("127.0.0.1", 81)) != 0
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(owner)
    os.close(netns)


def test_a_socket_that_cannot_be_made_says_why(rootless: str) -> None:
    owner, netns = owned(rootless)
    with pytest.raises(OSError, match="Protocol not supported"):
        child.socket_by_child(owner, netns, socket.AF_INET, socket.SOCK_STREAM, 200)
    os.close(owner)
    os.close(netns)


def test_a_namespace_of_our_own_user_namespace_needs_no_child() -> None:
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert enter.foreign_owner(descriptor) is None
    os.close(descriptor)


def test_without_rights_of_its_own_the_owner_gets_in(rootless: str) -> None:
    script = (
        "import socket, sys\n"
        "from urelay.namespaces import enter\n"
        "sock = enter.socket_inside(sys.argv[1], socket.AF_INET, socket.SOCK_STREAM)\n"
        "sock.bind(('127.0.0.1', 82))\n"
        "print(sock.getsockname(), enter.chore_inside(sys.argv[1], 'addresses', {})['addresses'])\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-sys_admin,-net_bind_service", sys.executable, "-c", script, rootless],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "('127.0.0.1', 82) ['127.0.0.1', '::1']", done.stderr


LIES = [
    pytest.param(b"", [], "ended without an answer", id="nothing"),
    pytest.param(b"\xff\xfe", [], "ended without an answer", id="junk"),
    pytest.param(b"[]", [], "ended without an answer", id="no object"),
    pytest.param(b"{}", [], "handed over no socket", id="no socket"),
    pytest.param(b"{}", [0], "handed over no socket", id="no socket but a file"),
    pytest.param(b"{}", [0, 0], "handed over no socket", id="two"),
    pytest.param(b'{"error": "bad \\u001b[31m"}', [0], "bad \\x1b[31m", id="hostile text"),
    pytest.param(b'{"error": {}}', [], "{}", id="no text"),
]


@pytest.mark.parametrize(("data", "kinds", "message"), LIES)
def test_what_a_child_says_is_not_believed(
    data: bytes, kinds: list[int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kinds`: a descriptor of /dev/null for each."""
    given = [os.open("/dev/null", os.O_RDONLY) for _ in kinds]
    before = len(os.listdir("/proc/self/fd"))
    _pretend(monkeypatch, data, given)
    with pytest.raises(StartError) as caught:
        child.socket_by_child(0, 0, socket.AF_INET, socket.SOCK_STREAM, 0)
    assert message in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor was kept"
    for number in given:
        os.close(number)


def test_a_socket_of_another_kind_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as given:
        _pretend(monkeypatch, b"{}", [given.fileno()])
        with pytest.raises(StartError, match="handed over another socket"):
            child.socket_by_child(0, 0, socket.AF_INET, socket.SOCK_STREAM, 0)


def test_a_child_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "PATIENCE_S", 0.05)
    monkeypatch.setattr(child, "_START", "import time; time.sleep(60)")
    with pytest.raises(StartError, match="did not answer"):
        child.ask_child(0, 0, "addresses", {})


def _pretend(monkeypatch: pytest.MonkeyPatch, data: bytes, descriptors: list[int]) -> None:
    """Let a child be somebody who sends just this."""

    class Liar:
        def __init__(self, argv: list[str], pass_fds: tuple[int, ...], **_: object) -> None:
            channel = json.loads(argv[-1])[2]
            assert channel == pass_fds[2]
            with socket.socket(fileno=os.dup(channel)) as sock:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
                sock.sendmsg([data], rights if descriptors else [])

        def kill(self) -> None:
            """It has ended."""

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(child.subprocess, "Popen", Liar)
