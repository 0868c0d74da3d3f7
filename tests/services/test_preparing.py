"""A generation is made beside the relay, whole or not at all; however long that takes, clients are served."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.places import HERE, own_port
from tests.services.rig import Echo, Relay, direct, echoes, socks, through
from urelay.errors import PolicyError, StartError
from urelay.protocols.fd_passing import GRANTED
from urelay.services.preparing import Prepared, Preparing


def sender_at(path: Path) -> socket.socket:
    """Somebody who hands out slots, when the test gets round to it."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(path))
    listening.listen()
    listening.settimeout(20)
    return listening


def granting(listening: socket.socket) -> threading.Thread:
    """Gives the first who asks what is asked for; over when that connection is."""

    def grant() -> None:
        applicant, _ = listening.accept()
        with applicant:
            applicant.recv(100)
            applicant.send(GRANTED)
            applicant.recv(100)

    thread = threading.Thread(target=grant)
    thread.start()
    return thread


def box(number: int, path: str = "slots") -> str:
    return f'listen box{number} = forward socketbox "{path}" slot {number} to 127.0.0.1:9\n'


def prepared(path: Path, held: tuple[object, ...] = ()) -> Prepared:
    """What came of it on its thread."""
    over = threading.Event()
    preparing = Preparing(str(path), held, over.set)  # type: ignore[arg-type]
    assert over.wait(20)
    assert preparing.over
    return preparing.outcome()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_that_waits_for_a_slot_holds_nobody_up(
    start: Callable[..., Relay], echo: Echo, tmp_path: Path, workers: str
) -> None:
    port = own_port()
    kept = socks(port) + direct(echo.port)
    relay = start(kept, "--workers", workers)
    with sender_at(tmp_path / "slots") as listening:
        relay.policy.write_text(kept + box(7))
        relay.process.send_signal(signal.SIGHUP)
        applicant, _ = listening.accept()
        with applicant:
            assert applicant.recv(100) == bytes.fromhex("0100000000000007")
            # The relay waits for the answer now; were it held, this would be when it gave up.
            with through(port, echo.port, HERE) as client:
                assert echoes(client)
            applicant.send(GRANTED)
            relay.hear("urelay: reloaded")
            with through(port, echo.port, HERE) as client:
                assert echoes(client)


def test_every_slot_that_cannot_be_had_is_named_and_the_others_are_let_go(tmp_path: Path) -> None:
    policy = tmp_path / "p.urr"
    policy.write_text(box(7) + box(8, "none") + box(9, "nothing"))
    with sender_at(tmp_path / "slots") as listening:
        before = len(os.listdir("/proc/self/fd"))
        thread = granting(listening)
        with pytest.raises(StartError) as caught:
            prepared(policy)
        thread.join(20)
        assert not thread.is_alive(), "what was registered is closed again"
        assert [problem.split(":")[0:3:2] for problem in caught.value.problems] == [
            [str(policy), " listener `box8`"],
            [str(policy), " listener `box9`"],
        ]
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_slot_that_is_held_is_not_asked_for_again(tmp_path: Path) -> None:
    policy = tmp_path / "p.urr"
    policy.write_text(box(7))
    with sender_at(tmp_path / "slots") as listening:
        thread = granting(listening)
        first = prepared(policy)
        (key,) = first.registered
        assert prepared(policy, (key,)).registered == {}
        first.close()
        thread.join(20)


def test_a_policy_with_errors_is_no_generation(tmp_path: Path) -> None:
    policy = tmp_path / "p.urr"
    policy.write_text("match any -> via nobody\n")
    with pytest.raises(PolicyError):
        prepared(policy)
