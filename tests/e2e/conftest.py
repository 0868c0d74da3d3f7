"""Fixtures: a network of namespaces, relays in it, and skips that name what is missing."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import programs
from tests.e2e.relay import Urelay
from tests.e2e.rig import Namespace, Network

Serve = Callable[..., Urelay]
Ssh = Callable[[Namespace, str], programs.SshServer]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips by name what this machine cannot run."""
    if item.get_closest_marker("netns") is not None:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")
        for tool in ("ip", "nsenter", "setpriv"):
            if programs.find(tool) is None:
                pytest.skip(f"network namespaces need `{tool}`")
    for mark in item.iter_markers("peer"):
        if programs.find(mark.args[0]) is None:
            pytest.skip(f"needs `{mark.args[0]}`")


@pytest.fixture(scope="session")
def clean_slate() -> None:
    """Nothing of a run that was killed is in the way."""
    Namespace.remove_forgotten()


@pytest.fixture
def net(clean_slate: None) -> Iterator[Network]:
    """Namespaces that are gone after the test."""
    with Network() as network:
        yield network


@pytest.fixture
def stack(net: Network) -> Iterator[contextlib.ExitStack]:
    """What is entered (or given a callback) here ends with the test, last first, before its namespaces."""
    with contextlib.ExitStack() as exits:
        yield exits


@pytest.fixture
def serve(stack: contextlib.ExitStack, tmp_path: Path) -> Serve:
    """Starts `urelay serve` with a policy's text and returns it ready; `finish` runs by itself."""

    def start(
        policy: str, netns: Namespace | None = None, *options: str, name: str = "site.urr", **settings: object
    ) -> Urelay:
        path = tmp_path / name
        path.write_text(textwrap.dedent(policy), encoding="utf-8")
        relay = Urelay(path, netns, *options, **settings)  # type: ignore[arg-type]
        stack.callback(relay.stop)
        relay.ready()
        stack.callback(relay.finish)
        return relay

    return start


@pytest.fixture
def ssh(stack: contextlib.ExitStack, tmp_path: Path) -> Ssh:
    """Starts a real sshd in a namespace, at an address."""

    def start(netns: Namespace, address: str) -> programs.SshServer:
        server = programs.SshServer(tmp_path, netns, address)
        stack.callback(server.close)
        return server

    return start
