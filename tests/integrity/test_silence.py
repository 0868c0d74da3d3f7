"""A peer that is gone without a word is noticed; one that only reads nothing is left in peace."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.e2e.rig import Namespace, Network
from tests.integrity.streams import Coded, pour
from tests.integrity.subject import Subject

pytestmark = pytest.mark.netns

FAR = "10.20.0.2"


@pytest.fixture
def wire() -> Iterator[tuple[Namespace, Namespace]]:
    """The relay's namespace and its peers', joined by a wire."""
    Namespace.remove_forgotten()
    with Network() as net:
        near, far = net.namespace("near"), net.namespace("far")
        net.wire(near, far, ["10.20.0.1/24"], [f"{FAR}/24"])
        yield near, far


def test_a_silent_peer_is_given_up_and_one_that_reads_nothing_is_not(
    wire: tuple[Namespace, Namespace],
) -> None:
    """R20: idle by keepalives, in flight by what stays unanswered; a zero window is another thing."""
    near, far = wire
    limits = {
        "keepalive_from_s": 0.2, "probe_after_s": 1, "probe_every_s": 1, "unheard_s": 1.5, "stalled_s": 60.0,
    }  # fmt: skip
    with far.listen(FAR) as server:
        port = server.getsockname()[1]
        listeners = [("far", "forward", FAR, port)]
        routes = [(FAR, "direct")]
        with Subject(netns=near.command(()), listeners=listeners, routes=routes, limits=limits) as subject:

            def flow() -> tuple[socket.socket, socket.socket]:
                client = near.connect(*subject.address("far"))
                return client, server.accept()[0]

            # Whoever reads nothing, before the wire breaks, answers all the time that it has no room.
            slow, reader = flow()
            said = pour(Coded(1), slow)[0]
            time.sleep(3)
            assert subject.report().active == 1
            reader.settimeout(20)
            heard = 0
            while heard < said:
                data = reader.recv(1 << 18)
                Coded(1).check(heard, data)
                heard += len(data)
            idle, busy = flow(), flow()
            # The far end: the near one keeps its route, and nothing comes back.
            far.ip("link", "set", "near", "down")
            began = time.monotonic()
            busy[0].sendall(b"anybody there?")
            records = subject.records(3)
            took = time.monotonic() - began
            assert 1 <= took < 15
            assert {(record.end, record.error) for record in records} == {
                ("timeout", "the server stopped answering")
            }
            for sock in (slow, reader, *idle, *busy):
                sock.close()
