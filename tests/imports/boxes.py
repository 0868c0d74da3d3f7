"""Configurations of socketbox, and where the policies made of them send a connection."""

from __future__ import annotations

import random
from pathlib import Path

from urelay.imports.socketbox import convert
from urelay.net.address import parse_address
from urelay.policy.check import check_file
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table

PORTS = (80, 443, 22)


def table(folder: Path, text: str) -> Table:
    """What `urelay import socketbox` makes of `text`, compiled."""
    path = folder / "box.urr"
    path.write_text(convert(text, "socketbox.conf"))
    judged = check_file(str(path))
    assert judged.policy is not None, judged.diagnostics
    return compile_policy(judged.policy)


def goes(decided: Table, host: str, port: int, source: str = "203.0.113.1") -> str:
    """The name of the socket behind `run/`, or `deny`."""
    decision = decided.decide(parse_address(host), port, parse_address(source), "box")
    return "deny" if decision.denied else (decision.template or "").rpartition("run/")[2]


def random_rules(rng: random.Random) -> list[list[str]]:
    """What up to six rules ask for, about few enough addresses that rules overlap."""
    rules = []
    for _ in range(rng.randint(1, 6)):
        ip = rng.choice([None, *(rng.choice([96, 104, 112, 120, 128]) for _ in range(3))])
        port = rng.choice([None, *PORTS[:2]])
        rip = rng.choice([None, None, 104, 128])
        words = []
        if ip is not None:
            words.append(f"ip:::ffff:10.0.{rng.randrange(2)}.{rng.randrange(2)}/{ip}")
        if port is not None:
            words.append(f"port:{port}")
        if rip is not None:
            words.append(f"rip:::ffff:10.{rng.randrange(2)}.0.1/{rip}")
        rules.append(words)
    return rules


def random_connection(rng: random.Random) -> tuple[str, int, str]:
    """A destination, a port and a source that `random_rules` may be about."""
    host = f"10.0.{rng.randrange(2)}.{rng.randrange(3)}"
    return host, rng.choice(PORTS), f"10.{rng.randrange(2)}.0.{rng.randrange(1, 3)}"
