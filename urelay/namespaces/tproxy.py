"""The nftables way of bringing every port to one socket: TPROXY, as the text of a ruleset.

Needs CAP_NET_ADMIN in the namespace and nothing on the host, so it works rootless. The table has our
name: what a crash left is found by it, and replaced in one transaction.

The chain stands behind destination NAT, so it sees where a connection really goes. Own addresses are
listed, not asked of the kernel (`fib daddr type local`): for IPv6 that question would be answered by
the very routes that make everything local.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from urelay.policy.model import UNCAPTURED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from urelay.net.address import Prefix

TABLE: Final = "inet urelay"

REMOVE: Final = f"table {TABLE}\ndelete table {TABLE}\n"
"""Removes the table, also where there is none: made if missing, and then deleted"""


def ruleset(targets: Iterable[tuple[int, str]], own: Iterable[Prefix]) -> str:
    """The whole table, anew.

    `targets`: for each family (4, 6) that is captured, where its connections go, as `ADDR:PORT` or
    `:PORT`. `own`: what the programs of the namespace keep.
    """
    lines = [REMOVE + f"table {TABLE} {{", "  chain capture {"]
    lines.append("    type filter hook prerouting priority -99; policy accept;")
    lines.append(f"    meta mark {UNCAPTURED:#x} accept")
    kept = sorted(own)
    for family, to in targets:
        word = "ip" if family == 4 else "ip6"
        prefixes = ", ".join(_text(prefix) for prefix in kept if prefix.family == family)
        lines.append(f"    {word} daddr {{ {prefixes} }} accept")
        lines.append(f"    meta nfproto ipv{family} meta l4proto tcp tproxy {word} to {to}")
    return "\n".join([*lines, "  }", "}", ""])


def _text(prefix: Prefix) -> str:
    # A host's prefix without its length keeps the set one of addresses, not of intervals.
    text = str(prefix)
    return text.partition("/")[0] if prefix.length == prefix.bits else text
