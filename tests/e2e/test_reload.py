"""Reloading under load: nothing is lost, and each connection keeps the policy it was accepted under."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

import urelay
from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.rig import Namespace, Network, until

pytestmark = pytest.mark.netns

EVEN, ODD = "198.51.100.2", "198.51.100.3"
CLIENT = "198.51.100.9"
HEAD = "listen lan = transparent [::]:1080\n"
POLICIES = (
    HEAD + f"match {EVEN} -> direct\nmatch {ODD} -> deny\n",
    HEAD + f"match {EVEN} -> deny\nmatch {ODD} -> direct\n",
)
_ports = itertools.count(10_000)
RATE_PER_S = 200


@pytest.fixture
def box(net: Network) -> Namespace:
    """A namespace with both destinations, and a client's address."""
    box = net.namespace("box")
    box.address("lo", f"{EVEN}/32", f"{ODD}/32", f"{CLIENT}/32")
    return box


def visit(box: Namespace, address: str) -> tuple[str, str]:
    """One client: its own address and port, and what became of it (`direct`, `deny`, or `lost: …`)."""
    with box.call(lambda: socket.socket(socket.AF_INET)) as sock:
        sock.settimeout(20)
        # A port of its own finds each client's line in the log, and is known even to one that is
        # denied so quickly that connecting fails. They stay below the ports the kernel picks.
        port = next(_ports)
        sock.bind((CLIENT, port))
        source = f"{CLIENT}:{port}"
        try:
            sock.connect((address, 1080))
            sock.sendall(b"hello")
            said = peers.read_exactly(sock, 5)
        except (ConnectionResetError, BrokenPipeError):
            said = b""
        except OSError as error:
            return source, f"lost: {error}"
    return source, "direct" if said == b"hello" else "deny"


@pytest.mark.parametrize(
    ("workers", "reloads"),
    [
        pytest.param("1", 20, id="one process"),
        pytest.param("2", 8, id="workers"),
        pytest.param("2", 200, id="workers, often", marks=(pytest.mark.long, pytest.mark.timeout(600))),
    ],
)
def test_none_of_200_connections_a_second_is_lost_across_reloads(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path, workers: str, reloads: int
) -> None:
    # The servers sit on their own port of the same addresses, so the policy moves the port too.
    policies = [text.replace("-> direct", "-> rewrite port 7 then direct") for text in POLICIES]
    stack.enter_context(peers.Server(box.listen("0.0.0.0", 7), peers.echo))
    relay = serve(policies[0], box, "--workers", workers)
    loaded = {}
    for text in reversed(policies):
        relay.policy.write_text(text)
        policy = urelay.load(str(relay.policy))
        loaded[policy.decide(EVEN, 1080, listener="lan").policy] = policy
    assert len(loaded) == 2

    stopping = threading.Event()
    visits: list[tuple[str, Future[tuple[str, str]]]] = []
    with ThreadPoolExecutor(32) as pool:

        def load() -> None:
            began = time.monotonic()
            while not stopping.is_set():
                address = (EVEN, ODD)[len(visits) % 2]
                visits.append((address, pool.submit(visit, box, address)))
                # Paced, not synchronised: the next client is due at its own moment.
                stopping.wait(max(0.0, began + len(visits) / RATE_PER_S - time.monotonic()))

        clients = pool.submit(load)
        try:
            for number in range(1, reloads + 1):
                relay.policy.write_text(policies[number % 2])
                until(lambda due=number * 40: len(visits) >= due, "clients before the next reload")
                relay.reload()
                # What is accepted after the relay said so is decided by the new policy.
                expected = ("direct", "deny") if number % 2 == 0 else ("deny", "direct")
                assert (visit(box, EVEN)[1], visit(box, ODD)[1]) == expected
        finally:
            stopping.set()
        clients.result()
        seen = [(address, *visit.result()) for address, visit in visits]

    # At a reload every 40 clients or later; a busy machine may not manage the rate.
    assert len(seen) >= 40 * reloads
    assert [what for _, _, what in seen if what not in ("direct", "deny")] == []
    records = {record["source"]: record for record in relay.records(len(seen) + 2 * reloads)}
    for address, source, outcome in seen:
        record = records[source]
        decision = loaded[record["policy"]].decide(
            address, 1080, source=source.rpartition(":")[0], listener="lan"
        )
        assert record["outcome"] == outcome == decision.outcome.value, record
    assert {record["policy"] for record in records.values()} == set(loaded)


def test_an_invalid_policy_leaves_the_old_one_running_and_says_why(
    box: Namespace, stack: ExitStack, serve: Serve
) -> None:
    stack.enter_context(peers.Server(box.listen("0.0.0.0", 7), peers.echo))
    good = POLICIES[0].replace("-> direct", "-> rewrite port 7 then direct")
    relay = serve(good, box)
    relay.policy.write_text(good + "match @nobody -> direct\n")
    relay.reload("UR101")
    relay.wait_line("stays in force")
    assert visit(box, EVEN)[1] == "direct"
    assert visit(box, ODD)[1] == "deny"
    relay.policy.write_text(POLICIES[1].replace("-> direct", "-> rewrite port 7 then direct"))
    relay.reload()
    assert visit(box, EVEN)[1] == "deny"
    first, _, third = relay.records(3)
    assert first["policy"] != third["policy"]


def test_a_reload_opens_new_listeners_closes_old_ones_and_keeps_the_rest(
    box: Namespace, stack: ExitStack, serve: Serve
) -> None:
    stack.enter_context(peers.Server(box.listen("198.51.100.9", 7), peers.echo))
    route = "match 198.51.100.9 port 7 -> direct\n"
    relay = serve(f"listen a = socks 127.0.0.1:1\nlisten b = socks 127.0.0.1:2\n{route}", box)
    with box.connect("127.0.0.1", 1) as kept, box.connect("127.0.0.1", 2) as orphan:
        for sock in (kept, orphan):
            assert peers.socks5(sock, peers.literal("198.51.100.9"), 7) == 0
        relay.policy.write_text(f"listen a = socks 127.0.0.1:1\nlisten c = socks 127.0.0.1:3\n{route}")
        relay.reload()
        with pytest.raises(ConnectionRefusedError):
            box.connect("127.0.0.1", 2)
        with box.connect("127.0.0.1", 3) as fresh:
            assert peers.socks5(fresh, peers.literal("198.51.100.9"), 7) == 0
        for sock in (kept, orphan):
            sock.sendall(b"still here")
            assert peers.read_exactly(sock, 10) == b"still here"
    # A listener that cannot be bound keeps the old policy, with the reason.
    with box.listen("127.0.0.1", 4):
        relay.policy.write_text(f"listen a = socks 127.0.0.1:1\nlisten d = socks 127.0.0.1:4\n{route}")
        relay.reload("127.0.0.1:4")
    with box.connect("127.0.0.1", 3) as sock:
        assert peers.socks5(sock, peers.literal("198.51.100.9"), 7) == 0
