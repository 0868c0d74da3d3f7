"""Fixtures: an echo server, and relays that are gone after the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.rig import SERVING, Echo, Relay


@pytest.fixture
def echo() -> Iterator[Echo]:
    """An echo server."""
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Starts relays by a policy's text; ends them all."""
    relays: list[Relay] = []

    def start_one(
        text: str, *arguments: str, serving: bool = True, name: str = "p.urr", **options: object
    ) -> Relay:
        policy = tmp_path / name
        policy.write_text(text)
        relay = Relay(policy, *arguments, **options)
        relays.append(relay)
        if serving:
            relay.hear(SERVING.pattern)
        return relay

    yield start_one
    for relay in relays:
        relay.process.kill()
        relay.end() if relay.process.poll() is None else relay.process.wait()
        assert relay.process.stderr is not None
        relay._listener.join(20)
        relay.process.stderr.close()
