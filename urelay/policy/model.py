"""The meaning of a policy: frozen values, valid once built (by urelay.policy.check).

Everything is resolved: sets are their elements, words are addresses, prefixes, names and ranges.
A policy keeps its trees (`node`) because a finding must underline the writer's own text; nothing
past the compiler looks at them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import NamedTuple, TypeAlias, TypeVar

from urelay.frozen import frozen
from urelay.lang import ast
from urelay.lang.source import Origin, Source
from urelay.net.address import Address, Endpoint, Prefix

T = TypeVar("T")

MAIN = "main"
"""The table a listener uses when it names none."""


UNCAPTURED = 0x7572
"""The mark (SO_MARK) of connections that no `capture` takes."""


class PortRange(NamedTuple):
    """Ports `first` to `last`, both included."""

    first: int
    last: int

    @property
    def width(self) -> int:
        """How many ports: at least 1."""
        return self.last - self.first + 1


ALL_PORTS = PortRange(1, 65535)


class NameKind(enum.IntEnum):
    """What a name pattern covers (nginx's meaning). The order is the precedence, strongest last."""

    SELF_AND_BELOW = 1
    """`.example.com`"""
    BELOW = 2
    """`*.example.com`"""
    EXACT = 3
    """`example.com`"""


class NamePattern(NamedTuple):
    """A domain and what of it is meant. `name` has no leading dot or star."""

    kind: NameKind
    name: str

    def __str__(self) -> str:
        return {NameKind.EXACT: "", NameKind.BELOW: "*.", NameKind.SELF_AND_BELOW: "."}[self.kind] + self.name


@frozen
class Destinations:
    """A resolved set of addresses and names. Elements stay as they were written: no merging."""

    prefixes: Sequence[Prefix] = ()
    names: Sequence[NamePattern] = ()


@frozen
class Region:
    """Which connections; None in a field means any. A list is shorthand for one element each."""

    destinations: Destinations | None = None
    ports: tuple[PortRange, ...] | None = None
    sources: tuple[Prefix, ...] | None = None
    listeners: frozenset[str] | None = None


# --- actions


class Outcome(enum.StrEnum):
    """Where a connection ends up."""

    DIRECT = "direct"
    VIA = "via"
    UNIX = "unix"
    SOCKETBOX = "socketbox"
    DENY = "deny"
    SILENT = "silent"


TO_PATHS = frozenset({Outcome.UNIX, Outcome.SOCKETBOX})
"""Outcomes at the path of a socket, which stand behind `to` as they are called"""


class DenyHow(enum.StrEnum):
    """Which refusal the client sees: `deny` alone is what fits the listener."""

    DEFAULT = "deny"
    REFUSED = "refused"
    HOST_UNREACHABLE = "host-unreachable"
    NET_UNREACHABLE = "net-unreachable"
    TTL_EXPIRED = "ttl-expired"


@frozen
class Direct:
    """Dial the destination."""


@frozen
class Via:
    """Hand the destination to an upstream (`direct { … }` upstreams dial it themselves)."""

    upstream: str


@frozen
class Slot:
    """Clients for whoever registers at our own `path` for this number."""

    path: str
    number: int

    @property
    def box(self) -> str:
        """The path of the socketbox that leads to them, which is there while there are any."""
        return f"{self.path}.{self.number}"


@frozen
class Unix:
    """Connect to a unix socket; `template` may hold fields (urelay.policy.check verified them)."""

    template: str
    outcome: Outcome = Outcome.UNIX
    """SOCKETBOX: hand the client's connection itself over to whoever receives there"""
    slot: Slot | None = None
    """Whose box `template` is, if it is one of ours"""


@frozen
class Deny:
    """Refuse."""

    how: DenyHow = DenyHow.DEFAULT


@frozen
class Silent:
    """Hold the connection without a word, close at the handshake timeout."""


@frozen
class Lookup:
    """Ask a table again about the rewritten destination."""

    table: str


Deliver: TypeAlias = Direct | Via | Unix | Deny | Silent | Lookup


@frozen
class ToNat64:
    """Embed an IPv4 destination (RFC 6052, 2.2); `prefix.length` is 32 40 48 56 64 or 96."""

    prefix: Prefix


@frozen
class FromNat64:
    """Extract the IPv4 destination from an address under `prefix`."""

    prefix: Prefix


@frozen
class ToPrefix:
    """Keep the host bits, replace the network bits. A single address is a /32 or /128."""

    prefix: Prefix


@frozen
class ToName:
    """Replace the destination by a host name."""

    name: str


Move: TypeAlias = ToNat64 | FromNat64 | ToPrefix | ToName


@frozen
class Rewrite:
    """A new destination, new ports, or both. `ports` is as wide as each of the route's ranges, or 1."""

    move: Move | None = None
    ports: PortRange | None = None


@frozen
class Action:
    """What a route does: rewrite perhaps, then deliver."""

    deliver: Deliver
    rewrite: Rewrite | None = None


@frozen
class RouteSettings:
    """What stands after `with`."""

    idle_timeout_s: float | None = None
    tag: str | None = None
    log: str = "end"
    """`end`: a line when the connection ends; `full`: with every step of the way; `off`: none"""
    limit_per_source: int | None = None


NO_SETTINGS = RouteSettings()


@frozen
class Route:
    """One `match` statement."""

    table: str
    region: Region
    action: Action
    settings: RouteSettings
    origin: Origin
    node: ast.Match = field(repr=False, compare=False)
    guard: bool = False
    """From rules/guard.urr: stands in every table and yields to the policy's own route at the same key."""


@frozen
class Wall:
    """One `forbid` statement; `table` is None for a top-level one, which holds everywhere."""

    table: str | None
    region: Region
    origin: Origin
    node: ast.Forbid = field(repr=False, compare=False)


@frozen
class Expectation:
    """One `expect` statement, resolved.

    What the region leaves open is meant *for all*. `table` is the table it speaks about: the one
    named by `table T`, the one whose block it stands in, or None: then each listener of the region
    uses its own table (as step 1 of a decision does), and without `on` it is about table main.
    """

    table: str | None
    region: Region
    negated: bool
    outcome: Outcome
    deny_how: DenyHow | None
    """None: `expect … -> deny` accepts every refusal, `deny silently` too"""
    upstream: str | None
    template: str | None
    destination: Endpoint | None
    origin: Origin
    node: ast.Expect = field(repr=False, compare=False)


# --- ways out and ways in


@frozen
class Setting:
    """One option as set: its checked value (urelay.policy.options tells the type) and where."""

    value: object
    origin: Origin


@frozen
class Login:
    """Where a login is read from when the relay starts; never the login itself."""

    env: str | None = None
    file: str | None = None
    """As an absolute or working-directory-relative path, resolved against the policy's folder."""


@frozen
class HealthCheck:
    """`check 1.1.1.1:443 every 10s`: whoever can connect there works."""

    endpoint: Endpoint
    every_s: float


class UpstreamKind(enum.StrEnum):
    """The kinds of upstream the language knows."""

    DIRECT = "direct"
    SOCKS4 = "socks4"
    SOCKS5 = "socks5"
    HTTP = "http"
    FIRST = "first"
    SPREAD = "spread"


class SendProxy(enum.StrEnum):
    """Which PROXY header an upstream's connections begin with."""

    V1 = "v1"
    V2 = "v2"


@frozen
class Upstream:
    """A way out with a name. `options` holds what was written; the properties give the defaults."""

    name: str
    kind: UpstreamKind
    endpoint: Endpoint | None
    """The proxy's; None for direct, groups, and a proxy on a unix socket"""
    members: tuple[str, ...]
    options: Mapping[str, Setting]
    origin: Origin
    node: ast.UpstreamDef | ast.Deliver = field(repr=False, compare=False)

    @property
    def unix_path(self) -> str | None:
        """The unix socket the proxy listens on."""
        return self._of("unix", str)

    @property
    def via(self) -> str | None:
        """The upstream that this proxy, or the destination of this direct upstream, is reached through."""
        return self._of("via", str)

    @property
    def login(self) -> Login | None:
        """Where user and password come from."""
        return self._of("login", Login)

    @property
    def connect_timeout_s(self) -> float | None:
        """Seconds one address may take to connect; None is the relay's default."""
        return self._of("connect", float)

    @property
    def source(self) -> Address | None:
        """The address its connections leave from."""
        return self._of("source", bytes)

    @property
    def device(self) -> str | None:
        """The interface they leave by."""
        return self._of("dev", str)

    @property
    def mark(self) -> int | None:
        """The mark they carry for policy routing."""
        return self._of("mark", int)

    @property
    def netns(self) -> str | None:
        """The namespace (a name under /run/netns, or a path) they are made in."""
        return self._of("netns", str)

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken: to the proxy, or to the destination of a direct upstream."""
        return "tls" in self.options

    @property
    def server_name(self) -> str | None:
        """The name the certificate must hold, if not the one it is reached by."""
        return self._of("server-name", str)

    @property
    def ca_file(self) -> str | None:
        """The file of certificates to trust, instead of the system's."""
        return self._of("ca", str)

    @property
    def insecure(self) -> bool:
        """Whether any certificate will do."""
        return "insecure" in self.options

    @property
    def check(self) -> HealthCheck | None:
        """How the members of a group show that they work."""
        return self._of("check", HealthCheck)

    @property
    def spread_by(self) -> str:
        """What keeps a connection on its member: `source` by default, `destination`, or `random`: nothing."""
        return "random" if "random" in self.options else self._of("by", str) or "source"

    @property
    def send_proxy(self) -> SendProxy | None:
        """The PROXY header its connections begin with; None: they have none."""
        setting = self.options.get("send-proxy")
        return SendProxy(setting.value) if setting is not None and isinstance(setting.value, str) else None

    @property
    def takes_names(self) -> bool:
        """Whether this proxy is sent host names as they are (`dns remote`); else they are resolved here.

        socks5 and http do unless told otherwise, as `curl --socks5-hostname` and Tor want it;
        socks4 does only when told to (it then speaks 4a).
        """
        setting = self.options.get("dns")
        if setting is not None:
            return setting.value == "remote"
        return self.kind in (UpstreamKind.SOCKS5, UpstreamKind.HTTP)

    def _of(self, option: str, kind: type[T]) -> T | None:
        setting = self.options.get(option)
        return setting.value if setting is not None and isinstance(setting.value, kind) else None


class ListenerKind(enum.StrEnum):
    """How a listener learns where its clients want to go."""

    TRANSPARENT = "transparent"
    REDIRECT = "redirect"
    SOCKS = "socks"
    HTTP = "http"
    MIXED = "mixed"
    FORWARD = "forward"


class PlaceKind(enum.StrEnum):
    """How a listener gets its socket."""

    ADDRESS = "address"
    FD = "fd"
    FD_ENV = "fd env"
    SYSTEMD = "systemd"
    UNIX = "unix"
    SOCKETBOX = "socketbox"


@frozen
class Place:
    """Where a listener listens. `endpoint` for an address, `fd` for a number, `text` for the rest.

    `slot` is for a socketbox that is not ours: whoever made it hands over to those who registered.
    """

    kind: PlaceKind
    endpoint: Endpoint | None = None
    fd: int | None = None
    text: str | None = None
    slot: int | None = None


class HeaderTarget(enum.StrEnum):
    """Which of the destinations a PROXY header may hold is the client's."""

    NAME = "name"
    """The name in it (TLV 0x02) where there is one, else the address"""
    ADDRESS = "address"
    """The address, whatever else it holds"""
    INNER = "inner"
    """u-relay's inner one (TLV 0xE0) where there is one, and then the name before its address"""


@frozen
class AcceptProxy:
    """`accept-proxy from SENDERS as TARGET`: a PROXY header comes first, and is believed from these."""

    senders: tuple[Prefix, ...]
    """Whose headers are believed, beside those of clients without an address, which came by a file"""
    target: HeaderTarget = HeaderTarget.NAME


@frozen
class TableChoice:
    """`table T from PREFIX`: which table a listener's clients live in, by the longest source prefix."""

    table: str
    source: Prefix | None = None
    """None: `table T`, for every other client of this listener"""


@frozen
class Listener:
    """A way in with a name."""

    name: str
    kind: ListenerKind
    place: Place
    to: Endpoint | None
    """`forward` only: the destination of every client"""
    tables: tuple[TableChoice, ...]
    """In no particular order; main when none fits"""
    options: Mapping[str, Setting]
    origin: Origin
    node: ast.ListenDef = field(repr=False, compare=False)

    @property
    def netns(self) -> str | None:
        """The namespace (a name under /run/netns, or a path) the socket is opened in."""
        setting = self.options.get("netns")
        return setting.value if setting is not None and isinstance(setting.value, str) else None

    @property
    def captures(self) -> bool:
        """Whether every connection is to be brought to this listener (`capture tcp`)."""
        return "capture" in self.options

    @property
    def file_mode(self) -> int | None:
        """The permission bits of the file of a unix socket; None is the relay's default."""
        setting = self.options.get("mode")
        return setting.value if setting is not None and isinstance(setting.value, int) else None

    @property
    def users_file(self) -> str | None:
        """The file of `user:password` lines (RFC 1929), resolved against the policy's folder."""
        setting = self.options.get("users")
        return setting.value if setting is not None and isinstance(setting.value, str) else None

    @property
    def accept_proxy(self) -> AcceptProxy | None:
        """The PROXY headers its clients begin with; None: they have none."""
        setting = self.options.get("accept-proxy")
        return setting.value if setting is not None and isinstance(setting.value, AcceptProxy) else None

    @property
    def limit_per_source(self) -> int | None:
        """Connections one source address may have open; None is the relay's default."""
        setting = self.options.get("limit")
        return setting.value if setting is not None and isinstance(setting.value, int) else None

    @property
    def idle_timeout_s(self) -> float | None:
        """Seconds without a byte either way; None is the default for this kind."""
        setting = self.options.get("idle")
        return setting.value if setting is not None and isinstance(setting.value, float) else None


@frozen
class DnsService:
    """A `dns` statement: checked in full; what answers belongs to a later release."""

    name: str
    place: Place
    options: Mapping[str, Setting]
    origin: Origin
    node: ast.DnsDef = field(repr=False, compare=False)


@frozen
class Policy:
    """A whole policy: every file it includes, and the guard."""

    path: str
    digest: str
    """Hex SHA-256 over every file read (policies, lists, guard): the same digest decides the same"""
    sources: tuple[Source, ...]
    documents: tuple[ast.Document, ...] = field(repr=False)
    upstreams: Mapping[str, Upstream]
    """By name, those written inline too (`socks5 10.0.0.8:1080`)"""
    listeners: Mapping[str, Listener]
    dns: Mapping[str, DnsService]
    tables: Mapping[str, tuple[Route, ...]]
    """The routes of each table, `main` always among them; the guard's are apart"""
    guard: tuple[Route, ...]
    walls: tuple[Wall, ...]
    expectations: tuple[Expectation, ...]

    def slots(self) -> frozenset[Slot]:
        """Every slot that a route hands over to."""
        return slots_of(self.tables)


def slots_of(tables: Mapping[str, Iterable[Route]]) -> frozenset[Slot]:
    """Every slot that a route of these tables hands over to."""
    delivers = (route.action.deliver for table in tables.values() for route in table)
    return frozenset(one.slot for one in delivers if isinstance(one, Unix) and one.slot is not None)


def packed_source(source: Address | None) -> tuple[int, int]:
    """A source as (family, integer) for comparing with prefixes; (0, 0) when there is none."""
    if source is None:
        return 0, 0
    return (4 if len(source) == 4 else 6), int.from_bytes(source)
