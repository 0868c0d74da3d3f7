"""What is done inside a namespace whose connections are captured: questions and answers that are JSON.

Each chore runs where the namespace is, on a thread that has entered it or in a child
(urelay.namespaces.enter.chore_inside); so each takes and gives only what can be sent to one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from urelay.errors import StartError
from urelay.namespaces.routes import PROTOCOL, TABLE, Route, Rule, route, rules
from urelay.namespaces.tproxy import REMOVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pyroute2 import IPRoute

_NFT_PATIENCE_S = 15.0
_FAMILIES = {4: 2, 6: 10}
_TCP = 6
_IFF_UP = 1
_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"


def addresses(about: Mapping[str, Any]) -> dict[str, Any]:
    """`{"addresses": ["10.1.0.1", …]}`: those of every interface."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        found = []
        for message in kernel.get_addr():
            # On a point-to-point link IFA_ADDRESS is the other end's.
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            if isinstance(text, str):
                found.append(text)
    return {"addresses": found}


def install(about: Mapping[str, Any]) -> dict[str, Any]:
    """Replace whatever was left by what `families`, `born` and `nft` (a ruleset, or empty) ask for."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        _remove_routing(kernel)
        loopback = _loopback(kernel)
        _nft(about["nft"] or REMOVE, needed=bool(about["nft"]))
        for family in about["families"]:
            # The route first: a rule to an empty table would let connections pass uncaptured.
            with _explained():
                _add_route(kernel, route(family), loopback)
                for rule in rules(family, about["born"]):
                    _add_rule(kernel, rule)
    return {}


def steer(about: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the ruleset by `nft`."""
    _nft(about["nft"], needed=True)
    return {}


def remove(about: Mapping[str, Any]) -> dict[str, Any]:
    """Take everything away, whoever left it."""
    from pyroute2 import IPRoute

    with IPRoute() as kernel:
        _remove_routing(kernel)
    _nft(REMOVE, needed=False)
    return {}


CHORES: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "addresses": addresses,
    "install": install,
    "steer": steer,
    "remove": remove,
}


def _add_route(kernel: IPRoute, made: Route, loopback: int) -> None:
    kernel.route(
        "add",
        family=_FAMILIES[made.family],
        dst=made.to,
        type="local",
        oif=loopback,
        prefsrc=made.source,
        table=TABLE,
        proto=PROTOCOL,
        **({"scope": "host"} if made.family == 4 else {}),
    )


def _add_rule(kernel: IPRoute, made: Rule) -> None:
    words: dict[str, Any] = {"action": {"lookup": "to_tbl"}.get(made.action, made.action)}
    if made.action == "goto":
        words["goto"] = made.to
    elif made.action == "lookup":
        words["table"] = made.to
    if made.mark is not None:
        words["fwmark"] = made.mark
    if made.born_here:
        words["iifname"] = "lo"
    if made.source is not None:
        address, _, length = made.source.partition("/")
        words |= {"src": address, "src_len": int(length)}
    if made.tcp:
        words["ip_proto"] = _TCP
    kernel.rule("add", family=_FAMILIES[made.family], priority=made.priority, protocol=PROTOCOL, **words)


def _remove_routing(kernel: IPRoute) -> None:
    for family in _FAMILIES.values():
        # The rules first: nobody is led to an empty table.
        kernel.flush_rules(family=family, protocol=PROTOCOL)
        kernel.flush_routes(family=family, table=TABLE)


def _loopback(kernel: IPRoute) -> int:
    """The number of `lo`; raises StartError while it is down, for nothing local is delivered then."""
    for link in kernel.get_links():
        if link.get_attr("IFLA_IFNAME") == "lo" and link["flags"] & _IFF_UP:
            index: int = link["index"]
            return index
    raise StartError("the interface `lo` is down there (ip link set lo up)")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what the kernel refuses into what other parts of the relay know."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from None


def _nft(ruleset: str, *, needed: bool) -> None:
    """Load a ruleset; where it is not `needed`, a machine without nftables is as good."""
    program = shutil.which("nft") or shutil.which("nft", path=_SBIN)
    if program is None:
        if needed:
            raise StartError("`nft` is not installed, and connections cannot be captured without it")
        return
    done = subprocess.run(
        [program, "-f", "-"],
        input=ruleset,
        capture_output=True,
        text=True,
        check=False,
        timeout=_NFT_PATIENCE_S,
    )
    if done.returncode != 0 and needed:
        lines = done.stderr.strip().splitlines() or ["it does not say why"]
        raise StartError(f"nft refuses the rules that capture: {lines[0]}")
