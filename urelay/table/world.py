"""One table of a policy, ready to be asked: leaves for addresses and for names."""

from __future__ import annotations

from dataclasses import dataclass

from urelay.errors import AddressError
from urelay.net.address import Host
from urelay.table.decision import Decision
from urelay.table.leaf import Leaf
from urelay.table.names import NameTable
from urelay.table.prefixes import PrefixTable


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """What one table says, its walls and the guard included."""

    name: str
    v4: PrefixTable[Leaf]
    v6: PrefixTable[Leaf]
    names: NameTable[Leaf]
    any_leaf: Leaf
    """For names that no name route covers"""
    default: Decision
    """For connections that nothing matches: deny"""

    def leaf(self, host: Host) -> Leaf:
        """The leaf of a destination. Raises AddressError for bytes that are no address."""
        if isinstance(host, str):
            return self.names.lookup(host)
        if len(host) == 4:
            return self.v4.lookup(host)
        if len(host) == 16:
            return self.v6.lookup(host)
        raise AddressError(f"an address has 4 or 16 bytes, not {len(host)}")
