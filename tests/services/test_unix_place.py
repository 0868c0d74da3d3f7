"""A unix socket's file: made for its owner, replaced when it is stale, left alone when it is not."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.services.test_listeners import listener
from urelay.errors import StartError
from urelay.lang.source import Origin
from urelay.policy.model import Listener, Place, PlaceKind, Setting
from urelay.services.listeners import Opened, Opener
from urelay.services.unix_place import listen_at


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.sock"


def at(path: Path, mode: int | None = None, name: str = "lan") -> Listener:
    """A listener at a unix path."""
    one = listener(Place(PlaceKind.UNIX, text=str(path)), name)
    options = {} if mode is None else {"mode": Setting(mode, Origin("test.urr", 1, "mode"))}
    return Listener(name, one.kind, one.place, None, (), options, one.origin, one.node)


def reaches(path: Path) -> bool:
    """Whether a client gets in."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def bits(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def held(opened: list[Opened]) -> dict:
    return {one.key: one.sock for one in opened}


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_the_file_has_the_bits_that_were_asked_for(path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        sock, file = listen_at(str(path), mode, 16)
    finally:
        os.umask(before)
    with sock:
        assert bits(path) == mode
        assert reaches(path)
        assert not sock.getblocking()
        assert not sock.get_inheritable()
    file.remove()
    assert not path.exists()


def test_nobody_but_the_owner_unless_the_policy_says_so(path: Path) -> None:
    opener = Opener({}, ())
    opened = opener.open([at(path)])
    assert bits(path) == 0o600
    # A reload that says other bits changes them, and keeps the socket.
    again = opener.open([at(path, 0o660)], held(opened))
    assert bits(path) == 0o660
    assert os.path.sameopenfile(opened[0].sock.fileno(), again[0].sock.fileno())
    for one in (*opened, *again):
        one.sock.close()
    opener.close()
    assert not path.exists()


def test_a_file_that_nobody_listens_behind_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(path))
        crashed.listen()
    assert not reaches(path)
    sock, _ = listen_at(str(path), 0o600, 16)
    with sock:
        assert reaches(path)


@pytest.mark.parametrize("backlog", [0, 16])
def test_one_that_somebody_listens_behind_is_left_alone(path: Path, backlog: int) -> None:
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as client:
        live.bind(str(path))
        live.listen(backlog)
        client.connect(str(path))  # a backlog of 0 is full now, and the probe is not let in
        with pytest.raises(StartError, match="somebody listens there already"):
            listen_at(str(path), 0o600, 16)
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(StartError, match="there is a file that is no socket"):
        listen_at(str(path), 0o600, 16)
    assert path.read_text() == "precious"


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StartError, match="there is a file that is no socket"):
        listen_at(str(path), 0o600, 16)
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot listen on .*: no such file or directory"):
        listen_at(str(tmp_path / "no" / "relay.sock"), 0o600, 16)


def test_at_the_end_only_our_own_file_is_removed(path: Path) -> None:
    opener = Opener({}, ())
    [opened] = opener.open([at(path)])
    path.unlink()
    with opened.sock, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        opener.close()
        assert path.exists(), "somebody else's file was removed"


def test_a_listener_that_leaves_the_policy_takes_its_file_along(path: Path, tmp_path: Path) -> None:
    opener = Opener({}, ())
    opened = opener.open([at(path), at(tmp_path / "other", name="other")])
    again = opener.open([at(tmp_path / "other", name="other")], held(opened))
    assert not path.exists()
    assert (tmp_path / "other").exists()
    for one in (*opened, *again):
        one.sock.close()
    opener.close()


def test_a_start_that_fails_leaves_no_file(path: Path, tmp_path: Path) -> None:
    opener = Opener({}, ())
    with pytest.raises(StartError):
        opener.open([at(path), at(tmp_path / "no" / "way", name="bad")])
    assert not path.exists()
    opened = opener.open([at(path)])
    with pytest.raises(StartError):
        opener.open([at(path), at(tmp_path / "no" / "way", name="bad")], held(opened))
    assert reaches(path), "a failed reload took the file of a socket in use"
    opened[0].sock.close()
    opener.close()
