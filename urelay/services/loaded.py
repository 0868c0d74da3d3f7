"""A policy for Python programs: the forwarder's own table behind plain text arguments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from urelay.analysis import explain
from urelay.errors import AddressError
from urelay.net.address import Endpoint, parse_address, parse_host, printable, unmap
from urelay.policy.question import Connection, resolve_question
from urelay.services.verdict import judge

if TYPE_CHECKING:
    from urelay.analysis.explain import Explanation
    from urelay.net.address import Address, Host
    from urelay.policy.model import Policy
    from urelay.table.decision import Decision
    from urelay.table.evaluate import Table


class LoadedPolicy:
    """A checked and proved policy. It never changes: load the file again to see it changed."""

    __slots__ = ("_table",)

    def __init__(self, table: Table) -> None:
        self._table = table

    def __repr__(self) -> str:
        return f"<policy {self.policy.path} {self.digest[:8]}>"

    @property
    def policy(self) -> Policy:
        """The meaning of the file: routes, walls, upstreams, listeners."""
        return self._table.policy

    @property
    def digest(self) -> str:
        """The hash that decisions and access log lines carry: the same digest decides the same."""
        return self._table.digest

    def decide(
        self,
        destination: Host,
        port: int,
        source: str | Address | None = None,
        listener: str | None = None,
        table: str | None = None,
    ) -> Decision:
        """What the relay does with such a connection; the `destination` is always filled in.

        Destination and source are text or packed bytes. Without a listener no route that says `on`
        matches. Nothing is resolved: where `needs_address` is set the relay would resolve the name
        and ask again about each answer. Raises AddressError for a text that is neither an address
        nor a host name, for a port that is none, and for a listener or table the policy lacks.
        """
        host = parse_host(destination) if isinstance(destination, str) else _packed(destination)
        if not 1 <= port <= 65535:
            raise AddressError(f"{port} is not a port")
        if listener is not None and listener not in self.policy.listeners:
            raise AddressError(f"there is no listener called `{listener}`")
        if table is not None and table not in self.policy.tables:
            raise AddressError(f"there is no table called `{table}`")
        client = parse_address(source) if isinstance(source, str) else source and _packed(source)
        return explain.decide(self._table, Connection(Endpoint(host, port), client, listener, table))

    def explain(self, connection: str) -> Explanation:
        """Why, in the words of `urelay explain`: `10.1.2.3:22 from 192.168.7.9 on lan`.

        The answer has `text()` and `json()`. Raises PolicyError for a text that makes no sense, and
        AddressError for one that names more than one connection.
        """
        question = resolve_question(connection, self.policy)
        if question.connection is None:
            raise AddressError(f"`{printable(connection)}` names more than one connection")
        return explain.explain(self._table, question.connection)


def load(path: str | os.PathLike[str]) -> LoadedPolicy:
    """Judge the policy in a file as `urelay check` does; raises PolicyError when it has errors."""
    return LoadedPolicy(judge(os.fspath(path)).proved())


def _packed(address: bytes) -> Address:
    if len(address) not in (4, 16):
        raise AddressError(f"an address has 4 or 16 bytes, not {len(address)}")
    return unmap(address)
