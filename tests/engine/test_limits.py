"""Defaults fit the process they run in, and every timeout can be felt by the timers."""

from __future__ import annotations

import resource

import pytest

from urelay.engine.limits import Limits
from urelay.policy.model import ListenerKind


@pytest.mark.parametrize("soft", [64, 256, 1024, 1 << 20])
def test_connections_and_pipes_fit_the_descriptors(soft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, soft))
    limits = Limits.for_this_process()
    assert 8 <= limits.max_connections <= 10_000
    if soft >= 256:
        assert 2 * limits.max_connections + 2 * limits.max_pipes <= soft - 64
    # Who never asks takes no more than a share, whatever the number of his addresses.
    assert limits.max_handshakes <= max(32, limits.max_connections // 4)


def test_no_limit_on_descriptors_is_the_full_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (resource.RLIM_INFINITY,) * 2)
    assert Limits.for_this_process().max_connections == 10_000


def test_the_grain_follows_the_shortest_timeout() -> None:
    assert Limits().tick_s == pytest.approx(0.5)
    assert Limits(idle_s=0.5).tick_s == pytest.approx(0.125)
    assert Limits(idle_s=0, farewell_s=0).tick_s == 1.0


def test_transparent_flows_may_be_silent_for_longer() -> None:
    limits = Limits()
    assert limits.idle_for(ListenerKind.TRANSPARENT) == 7500
    assert limits.idle_for(ListenerKind.SOCKS) == limits.idle_for(ListenerKind.FORWARD) == 3600
