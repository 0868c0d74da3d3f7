"""The one table of options: what may stand inside `{ }` of a definition and after `with`.

The grammar knows no option's name. This table does, and everything reads it: the checker, the list
of what `serve` cannot run yet, completion and the reference. A new option is a row here, a reader in
urelay.policy.values if its value is of a new kind, and whoever acts on it.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass


class Owner(enum.StrEnum):
    """Whose option it is, as messages say it."""

    UPSTREAM = "upstream"
    LISTENER = "listener"
    DNS = "dns service"
    ROUTE = "route"


class ValueKind(enum.Enum):
    """What follows the option's name, and the type of `model.Setting.value` it becomes."""

    FLAG = "nothing; True"
    DURATION = "a duration; float, seconds"
    CHOICE = "one of the option's choices; str"
    CHOICES = "one or more of the option's choices; tuple[str, ...]"
    WORD = "a word; str"
    HOST_NAME = "a host name; str"
    ADDRESS = "an address; bytes"
    INTERFACE = "a network interface; str"
    FILE_MODE = "permission bits, in octal; int"
    MARK = "a number that fits 32 bits; int"
    NAMESPACE = "a name under /run/netns, or a path; str"
    FILE = "a quoted path beside the policy; str"
    SOCKET = "a quoted path of a unix socket; str"
    LOGIN = "`env NAME` or `file PATH`; model.Login"
    UPSTREAM = "the name of an upstream; str"
    CHECK = "`ENDPOINT every DURATION`; model.HealthCheck"
    LIMIT = "`N per source`; int"
    TABLE = "`TABLE` or `TABLE from PREFIX`; model.TableChoice, kept in Listener.tables"
    ACCEPT_PROXY = "`from` addresses, then perhaps `as` and which destination; model.AcceptProxy"
    PREFIX = "exactly one prefix; Prefix"
    FORWARD = "`ENDPOINT` or `ENDPOINT via UPSTREAM`; values.Forward"


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table."""

    owner: Owner
    name: str
    value: ValueKind
    syntax: str
    """An example one can paste"""
    help: str
    kinds: frozenset[str] = frozenset()
    """The kinds of upstream or listener that have it; empty: every kind"""
    choices: tuple[str, ...] = ()
    repeats: bool = False
    served: bool = True
    """Whether this release acts on it; `serve` refuses a policy that uses another"""


_PROXIES = frozenset({"socks5", "socks4", "http"})
_DIALS = _PROXIES | {"direct"}
_GROUPS = frozenset({"first", "spread"})
_ASKS_LOGIN = frozenset({"socks", "http", "mixed"})
_CAPTURES = frozenset({"transparent", "redirect"})

_UP, _IN, _DNS, _ROUTE = Owner.UPSTREAM, Owner.LISTENER, Owner.DNS, Owner.ROUTE
_V = ValueKind

OPTIONS: tuple[Option, ...] = (
    # --- upstreams
    Option(
        _UP, "login", _V.LOGIN, "login env CORP_LOGIN",
        "where `user:password` is read from when the relay starts; it never stands in a policy",
        kinds=_PROXIES,
    ),
    Option(
        _UP, "dns", _V.CHOICE, "dns remote",
        "send host names as they are, or resolve them here; socks5 and http send them, socks4 does not",
        kinds=_PROXIES, choices=("remote", "local"),
    ),
    Option(_UP, "connect", _V.DURATION, "connect 5s", "how long one address may take", kinds=_DIALS),
    Option(
        _UP, "via", _V.UPSTREAM, "via jump",
        "reach the proxy, or the destination of a direct upstream, through another upstream", kinds=_DIALS,
    ),
    Option(
        _UP, "source", _V.ADDRESS, "source 10.66.0.2", "the address to connect from",
        kinds=_DIALS,
    ),
    Option(
        _UP, "dev", _V.INTERFACE, "dev wg0", "the interface to connect through (SO_BINDTODEVICE)",
        kinds=_DIALS,
    ),
    Option(
        _UP, "mark", _V.MARK, "mark 0x51", "the mark for policy routing (SO_MARK)",
        kinds=_DIALS,
    ),
    Option(
        _UP, "netns", _V.NAMESPACE, "netns blue", "the network namespace to connect from",
        kinds=_DIALS,
    ),
    Option(
        _UP, "send-proxy", _V.CHOICE, "send-proxy v2", "announce the client with a PROXY header",
        kinds=_DIALS, choices=("v1", "v2"),
    ),
    Option(
        _UP, "unix", _V.SOCKET, 'unix "/run/proxy.sock"', "the proxy listens on this unix socket",
        kinds=_PROXIES,
    ),
    Option(
        _UP, "tls", _V.FLAG, "tls", "speak TLS: to the proxy, or to the destination of a direct upstream",
        kinds=_DIALS,
    ),
    Option(
        _UP, "server-name", _V.HOST_NAME, "server-name proxy.example.com",
        "the name the certificate must hold, if not the one it is reached by", kinds=_DIALS,
    ),
    Option(
        _UP, "ca", _V.FILE, 'ca "ca.pem"', "the certificates to trust instead of the system's", kinds=_DIALS,
    ),
    Option(_UP, "insecure", _V.FLAG, "insecure", "accept any certificate", kinds=_DIALS),
    Option(
        _UP, "check", _V.CHECK, "check 1.1.1.1:443 every 10s",
        "how a member shows that it works: it connects to this endpoint, this often when nobody else used it",
        kinds=_GROUPS,
    ),
    Option(
        _UP, "by", _V.CHOICE, "by source", "what keeps a client on the same member",
        kinds=frozenset({"spread"}), choices=("source", "destination", "random"),
    ),
    Option(
        _UP, "random", _V.FLAG, "random", "any member for any connection: the same as `by random`",
        kinds=frozenset({"spread"}),
    ),
    # --- listeners
    Option(_IN, "netns", _V.NAMESPACE, "netns lan", "the network namespace to listen in"),
    Option(
        _IN, "capture", _V.CHOICE, "capture tcp",
        "install the routes and the rule that bring every connection here; remove them at exit",
        kinds=frozenset({"transparent"}), choices=("tcp",),
    ),
    Option(
        _IN, "table", _V.TABLE, "table guests from 10.9.0.0/16",
        "the table its clients live in: for all, or for those of one source prefix", repeats=True,
    ),
    Option(
        _IN, "sniff", _V.CHOICES, "sniff tls http",
        "let the name in the client's first bytes choose a name route",
        kinds=_CAPTURES, choices=("tls", "http"), served=False,
    ),
    Option(
        _IN, "accept-proxy", _V.ACCEPT_PROXY, "accept-proxy from 192.0.2.0/28",
        "require a PROXY header, and believe it from these senders only; "
        "`as` says which of its destinations counts",
        choices=("name", "address", "inner"),
    ),
    Option(
        _IN, "users", _V.FILE, 'users "users.txt"', "ask for a login: a file of `user:password` lines",
        kinds=_ASKS_LOGIN,
    ),
    Option(
        _IN, "limit", _V.LIMIT, "limit 200 per source", "connections one source address may have open",
    ),
    Option(_IN, "idle", _V.DURATION, "idle 1h", "close a connection without a byte for this long"),
    Option(
        _IN, "open", _V.FLAG, "open", "serve everybody on a wildcard address without a login",
        kinds=_ASKS_LOGIN,
    ),
    Option(
        _IN, "mode", _V.FILE_MODE, "mode 0660",
        "the bits of the file of a unix socket: who may write to it may connect; 0600 unless told",
    ),
    # --- dns services
    Option(_DNS, "netns", _V.NAMESPACE, "netns lan", "the network namespace to answer in", served=False),
    Option(
        _DNS, "fake", _V.PREFIX, "fake 198.18.0.0/15",
        "answer with addresses of this prefix and remember the name for the connection that follows",
        served=False,
    ),
    Option(
        _DNS, "forward", _V.FORWARD, "forward 9.9.9.9:53 via out", "the server that knows, and the way to it",
        served=False,
    ),
    Option(
        _DNS, "dns64", _V.PREFIX, "dns64 64:ff9b::/96", "make AAAA answers from A answers under this prefix",
        served=False,
    ),
    # --- routes
    Option(_ROUTE, "idle", _V.DURATION, "idle 5m", "close a connection without a byte for this long"),
    Option(
        _ROUTE, "limit", _V.LIMIT, "limit 20 per source",
        "connections of this route one source address may have open",
    ),
    Option(_ROUTE, "tag", _V.WORD, "tag smtp", "a word for the access log"),
    Option(
        _ROUTE, "log", _V.CHOICE, "log full", "a line at the end, with every step of the way, or none",
        choices=("end", "full", "off"),
    ),
)  # fmt: skip

NEEDS: dict[str, str] = {"server-name": "tls", "ca": "tls", "insecure": "tls"}
"""Upstream options that mean nothing without another one."""

CLASHES: tuple[tuple[str, str, str], ...] = (
    ("via", "unix", "a proxy on a unix socket is not reached through another"),
    *(("via", name, "it is the other upstream that connects") for name in ("source", "dev", "mark", "netns")),
    *(("unix", name, "a unix socket has none") for name in ("source", "dev", "mark", "netns")),
    ("by", "random", "both say how members are chosen"),
    ("ca", "insecure", "any certificate is accepted"),
)
"""Upstream options that cannot stand together, and why."""


@functools.cache
def options_of(owner: Owner, kind: str = "") -> Mapping[str, Option]:
    """The options an owner of this kind has, by name."""
    return {
        option.name: option
        for option in OPTIONS
        if option.owner is owner and (not option.kinds or kind in option.kinds)
    }
