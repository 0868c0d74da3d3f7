"""Whatever waits costs nothing: no state of a connection makes the relay turn without end."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from pathlib import Path
from typing import NamedTuple

from tests.engine.rig import reset
from tests.integrity.sizes import sizes
from tests.integrity.streams import Coded, pour
from tests.integrity.subject import Subject

LOOPBACK = "127.0.0.1"
PORT = 7
"""Nobody listens on it: the policy sends its clients to a unix socket"""
REST_S = 20.0
HELD = "192.0.2.1"
"""Who asks for it is held in silence"""


class Cell(NamedTuple):
    """A state of a connection, and what happens to it."""

    way: str
    """`tcp`, `unix`, or before there is one: `asking` a SOCKS listener, `held` without an answer"""
    closed: str | None = None
    """Who has half-closed"""
    stalled: tuple[str, ...] = ()
    """Who has said all that is taken, to somebody who reads nothing"""
    end: str | None = None
    """What comes then"""
    who: str = "client"
    """To whom it happens"""


SIDES = ("client", "server")
ENDS = ("half-close", "close", "reset")
FLOWING = [
    Cell(way, closed, stalled, *end)
    for way in ("tcp", "unix")
    for closed in (None, *SIDES)
    for stalled in ((), ("client",), ("server",), SIDES)
    for end in ((None,), *itertools.product(ENDS, SIDES))
    # A unix socket cannot be reset.
    if not (way == "unix" and end == ("reset", "server"))
]
ASKING = [Cell("asking", end=end) for end in (None, *ENDS)]
# Who is held and closes stays until the time is over, and the time is not over before the test.
HELD_BACK = [Cell("held", end=end) for end in (None, "half-close", "reset")]
CELLS = FLOWING + ASKING + HELD_BACK


@sizes("window_s", 1.0, 2.0)
def test_no_state_of_a_connection_keeps_the_relay_busy(window_s: float, tmp_path: Path) -> None:
    """R26: half-close, close or reset of either side in every state: at most 1 % of a CPU for them all."""
    # Twice: a machine busy with other things may look like a relay that is, but only a spin does so again.
    if spins(CELLS, window_s, tmp_path) and spins(CELLS, window_s, tmp_path):
        raise AssertionError(f"kept busy by {guilty_of(CELLS, window_s, tmp_path)}, perhaps by others too")


def guilty_of(cells: list[Cell], window_s: float, folder: Path) -> Cell:
    """One of those that keep it busy, found by halves."""
    while len(cells) > 1:
        half = cells[: len(cells) // 2]
        cells = half if spins(half, window_s, folder) else cells[len(half) :]
    return cells[0]


def spins(cells: list[Cell], window_s: float, folder: Path) -> bool:
    """Whether connections in these states, all at once, cost the relay more than next to nothing."""
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX)))
        path = folder / "served"
        path.unlink(missing_ok=True)
        served.bind(str(path))
        served.listen()
        subject = stack.enter_context(
            Subject(
                routes=[("127.0.0.0/8", "direct"), ("127.0.0.9", str(path)), (HELD, "silent")],
                listeners=[
                    ("unix", "forward", "127.0.0.9", PORT),
                    ("asking", "socks", LOOPBACK, None),
                    ("held", "forward", HELD, PORT),
                ],
                limits={"handshake_s": 600.0},
            )
        )
        made = [sides(subject, served, cell.way) for cell in cells]
        for pair in made:
            for sock in pair.values():
                stack.callback(happen, sock, "reset")
        pour(
            Coded(26),
            *(pair[name] for pair, cell in zip(made, cells, strict=True) for name in cell.stalled),
        )
        for pair, cell in zip(made, cells, strict=True):
            if cell.closed is not None:
                pair[cell.closed].shutdown(socket.SHUT_WR)
        come_to_rest(subject)
        for pair, cell in zip(made, cells, strict=True):
            happen(pair[cell.who], cell.end)
        come_to_rest(subject)
        used_s, wakeups = subject.idle(window_s)
    return used_s > 0.01 * window_s or wakeups > 3


def sides(subject: Subject, served: socket.socket, way: str) -> dict[str, socket.socket]:
    """Both ends of a fresh connection; the client's alone where there is no other."""
    if way == "tcp":
        return dict(zip(SIDES, subject.pair(), strict=True))
    client = subject.connect(way)
    if way == "unix":
        return {"client": client, "server": served.accept()[0]}
    if way == "asking":
        client.sendall(b"\5\1\0")
        assert client.recv(2) == b"\5\0"
    return {"client": client}


def happen(sock: socket.socket, end: str | None) -> None:
    # It may be over already, for what happened to the other side.
    with contextlib.suppress(OSError):
        if end == "half-close":
            sock.shutdown(socket.SHUT_WR)
        elif end == "close":
            sock.close()
        elif end == "reset":
            reset(sock)


def come_to_rest(subject: Subject) -> None:
    """Return when what happened has been dealt with: a tenth of a second without a wake-up."""
    deadline = time.monotonic() + REST_S
    while subject.idle(0.1)[1]:
        if time.monotonic() > deadline:
            # It never does: the figures say so.
            return
