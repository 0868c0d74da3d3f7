"""How long and how much: every bound the relay keeps, with its default and its reason."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace

from urelay.policy.model import ListenerKind
from urelay.protocols.socks import RECEIVE_SIZE

RESERVED_DESCRIPTORS = 64
"""Left out of the connection budget: listeners, logs, reloads, resolvers, namespaces"""

_FEW_CONNECTIONS = 256
"""No address is held to less, where the relay carries so many"""


def _connections_for(descriptors: int) -> int:
    """How many connections fit: two sockets each, and a pipe's two ends for one in four."""
    return max(8, min(10_000, (descriptors - RESERVED_DESCRIPTORS) * 2 // 5))


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds unless the name says otherwise. A timeout of 0 means never."""

    handshake_s: float = 10.0
    """Absolute, from accept to a complete request; a client that trickles gains nothing"""
    header_s: float = 5.0
    """For the PROXY header, where one comes first; its sender has it ready"""
    connect_s: float = 10.0
    """For an address dialled directly; what a Dialer does has timeouts of its own"""
    idle_transparent_s: float = 7500.0
    """2 h 5 min: an established flow may be silent for 2 h 4 min (RFC 5382, REQ-5)"""
    idle_s: float = 3600.0
    """For every other kind of listener"""
    half_closed_s: float = 60.0
    """Idle time of a flow with one direction ended; bytes the other way start it again"""
    stalled_s: float = 600.0
    """No byte accepted by a peer that owes a read: a zero window lasts for ever otherwise"""
    keepalive_from_s: float = 30.0
    """Flows that live this long get keepalives; shorter ones save the system calls"""
    probe_after_s: int = 60
    """Whole seconds of silence before the first keepalive probe"""
    probe_every_s: int = 15
    unheard_s: float = 120.0
    """How long the kernel of a peer may answer nothing, neither bytes nor probes"""
    reset_drain_s: float = 30.0
    """How long a reset waits for what was read before it to be delivered"""
    farewell_s: float = 2.0
    """How long a refused client may take to read its reply and close"""
    accept_batch: int = 32
    """Accepted per wake-up, so that a storm of them starves nobody"""
    accept_pause_s: float = 0.25
    """How long nothing is accepted once descriptors ran out"""
    handshake_bytes: int = RECEIVE_SIZE
    """Read of a client at a time until its request is complete; its protocol bounds what is kept for it"""
    max_connections: int = 10_000
    per_source: int = 2_500
    """Of these, one client's address may have so many (a listener's `limit` says otherwise): who opens
    connections and lets them lie is not to shut everybody else out"""
    max_handshakes: int = 1_024
    """Clients that have not said where they want to go. One more ends the oldest of them: somebody
    who means it is done in a moment, and making newcomers wait would serve who wastes our time"""
    max_pipes: int = 2_500

    @classmethod
    def for_this_process(cls) -> Limits:
        """The defaults, with as many connections and pipes as the descriptor limit carries."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        connections = _connections_for(soft if soft != resource.RLIM_INFINITY else 1 << 20)
        return cls().carrying(connections)

    def carrying(self, connections: int) -> Limits:
        """These limits with room for so many connections, and shares of it in proportion."""
        return replace(
            self,
            max_connections=connections,
            max_handshakes=min(self.max_handshakes, max(self.accept_batch, connections // 4)),
            max_pipes=max(4, connections // 4),
            per_source=min(connections, max(_FEW_CONNECTIONS, connections // 4)),
        )

    @property
    def tick_s(self) -> float:
        """The grain of the timers: a second, or a quarter of the shortest timeout."""
        timeouts = (
            self.handshake_s, self.header_s, self.connect_s, self.idle_transparent_s, self.idle_s,
            self.half_closed_s, self.stalled_s, self.reset_drain_s, self.farewell_s, self.unheard_s,
        )  # fmt: skip
        return max(0.01, min(1.0, min(t for t in timeouts if t > 0) / 4))

    def idle_for(self, kind: ListenerKind) -> float:
        """The idle timeout of a listener that sets none."""
        if kind in (ListenerKind.TRANSPARENT, ListenerKind.REDIRECT):
            return self.idle_transparent_s
        return self.idle_s
