"""socketbox walks its rules and hands a connection where the policy imported from them sends it."""

from __future__ import annotations

import random
import select
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import origin
from tests.e2e.family import run
from tests.e2e.rig import READY_S, Namespace, Network
from tests.imports.boxes import PORTS, goes, random_connection, random_rules, table

pytestmark = [pytest.mark.netns, pytest.mark.origin("socketbox")]

SOCKETS = 7


def rules(rng: random.Random, folder: Path) -> str:
    """Two sets of random rules, some of the first leading to the second, and a socket for what is left."""
    lines = ["max-rules:2"]
    for number in range(2):
        lines.append(f"rule-set:{number} size:9")
        for words in random_rules(rng):
            box = f"jump-unix:{folder}/run/{rng.randrange(1, SOCKETS)}"
            other = rng.choice([box, box, "fail", "jump-rule:1"]) if number == 0 else box
            lines.append(" ".join([*words, other]))
        lines.append(rng.choice(["default fail", f"default jump-unix:{folder}/run/0"]))
    return "\n".join([*lines, ""])


def receiver(path: Path) -> socket.socket:
    """Where socketbox hands over."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    return sock


def went(box: Namespace, host: str, port: int, source: str, receivers: dict[str, socket.socket]) -> str:
    """The name of the receiver that got a connection, `deny` when it was closed."""
    with box.call(lambda: socket.create_connection((host, port), READY_S, (source, 0))) as client:
        ready, _, _ = select.select([client, *receivers.values()], [], [], READY_S)
        assert len(ready) == 1
        if ready[0] is client:
            return "deny"
        (handed,) = socket.recv_fds(ready[0], 16, 4)[1]
        with socket.socket(fileno=handed) as inside:
            assert inside.getpeername()[:2] == (f"::ffff:{source}", client.getsockname()[1])
        return next(name for name, sock in receivers.items() if sock is ready[0])


def test_every_connection_goes_where_the_policy_sends_it(
    net: Network, stack: ExitStack, tmp_path: Path
) -> None:
    rng = random.Random(5)
    box = net.namespace("box")
    box.everything_is_local()
    (tmp_path / "run").mkdir()
    receivers = {
        str(number): stack.enter_context(receiver(tmp_path / "run" / str(number)))
        for number in range(SOCKETS)
    }
    seen = set()
    for port in PORTS * 12:
        text = rules(rng, tmp_path)
        conf = tmp_path / "box.conf"
        conf.write_text(text)
        decided = table(tmp_path, text)
        sender = run(stack, box, origin("socketbox"), "-f", conf, "-l", "::", "-p", port)
        sender.wait_listening(port)
        for _ in range(25):
            host, _, source = random_connection(rng)
            expected = goes(decided, host, port, source)
            assert went(box, host, port, source, receivers) == expected, (text, host, port, source)
            seen.add(expected)
        sender.stop()
    assert seen == {*receivers, "deny"}
