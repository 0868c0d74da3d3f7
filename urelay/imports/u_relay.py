"""Universal Relay's `static_maps.json` as a policy.

Its addresses are 64 bits of a prefix and 64 bits that say what is meant:

    bits 63 to 0                  means                       becomes
    05ff:7001:INDEX               relay_map[INDEX], a name    a route for that address
    05ff:6464:IPV4                that IPv4 address           `rewrite from nat64 …`
    05ff:7007:IPV4                what its configuration      a comment: `ipv4_handlers` is none of the maps
                                  says of that address

Behind the rewrite the policy is asked again about the IPv4 address: whoever dials through the window
meets what is said of it, and the guard, as whoever dials the address itself.

And the other maps are about names: `dc_map` (other names for them), `resolve_map` and `hosts_map`
(their addresses), `do_map` and `ip_map` (how they are reached). What Universal Relay's name service
hands out (`dns_map`, `groupsub_map`, addresses made on demand) no policy can say.

It relays whatever no map speaks of, and so does the policy, but for what the guard keeps shut.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from urelay.errors import AddressError, StartError
from urelay.imports.text import PolicyText, host_word, path_word
from urelay.net.address import (
    Endpoint,
    Prefix,
    address_of,
    address_text,
    parse_address,
    parse_host,
    parse_name,
    printable,
)

DEFAULT_PREFIX = Prefix(6, 0xFEDB_1200_4500_7800 << 64, 64)
"""What Universal Relay uses when it is told no other"""

_RELAY_MAP = 0x05FF_7001
_IPV4 = 0x05FF_6464
_CONFIGURED = 0x05FF_7007
_HOSTS = "u-relay.home.arpa"


def convert(text: str, source: str, prefix: Prefix = DEFAULT_PREFIX) -> str:
    """The policy for the maps in `text`. `prefix` is the /64 of its addresses.

    Raises StartError for what is no JSON object of maps.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StartError(f"{printable(source)} is not JSON: {printable(str(error))}") from None
    if not isinstance(document, dict):
        raise StartError(f"{printable(source)} holds no maps: expected an object")
    policy = PolicyText(source, "u-relay")
    policy.comment(f"its clients dial addresses under {prefix}, which must be local routes where it listens")
    policy.blank()
    policy.line("listen relay = transparent [::]:1081")
    for name, write in _MAPS.items():
        if name in document:
            policy.blank()
            policy.comment(f"{name}")
            for entry in _entries(document.pop(name)):
                write(policy, prefix, *entry)
    for name, entries in document.items():
        policy.blank()
        for entry in _entries(entries):
            policy.lost(f"{name} {json.dumps(entry)}", "the name service's business")
    # Behind the maps, so that what they say of a whole window, `delete` above all, stands.
    policy.blank()
    policy.comment("IPv4 addresses in the last 32 bits")
    window = _window(prefix, _IPV4)
    action = f"rewrite from nat64 {window} then lookup main"
    policy.route(str(window), action, "UR228: Universal Relay's window, which nobody else translates")
    policy.lost(_window(prefix, _CONFIGURED), "its configuration (`ipv4_handlers`) says what is there")
    policy.blank()
    policy.comment("Universal Relay dials whatever no map speaks of")
    policy.route("any", "direct")
    return str(policy)


def _window(prefix: Prefix, upper: int) -> Prefix:
    return Prefix(6, prefix.first | upper << 32, 96)


def _entries(value: object) -> Iterator[tuple[object, object]]:
    """The pairs of a map: it is written as a list of two-element lists, or as an object."""
    pairs = value.items() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for pair in pairs:
        if isinstance(pair, list | tuple) and len(pair) == 2:
            yield pair[0], pair[1]
        else:
            yield pair, None


# --- one function a map: what it writes for an entry


def _relay_map(policy: PolicyText, prefix: Prefix, name: object, index: object) -> None:
    number = _number(index)
    if number is None or number >= 1 << 32:
        policy.lost([name, index], "the index is no number of 32 bits")
        return
    try:
        target = host_word(parse_host(str(name)))
    except AddressError as error:
        policy.lost([name, index], str(error))
        return
    address = address_text(address_of(6, _window(prefix, _RELAY_MAP).first | number))
    policy.route(address, f"rewrite to {target} then lookup main")


def _hosts_map(policy: PolicyText, prefix: Prefix, label: object, address: object) -> None:
    _name_to(policy, f"{label}.{_HOSTS}", address)


def _resolve_map(policy: PolicyText, prefix: Prefix, name: object, addresses: object) -> None:
    first, *others = addresses if isinstance(addresses, list) and addresses else [addresses]
    _name_to(policy, name, first)
    for other in others:
        policy.lost([name, other], "a route has one destination")


def _dc_map(policy: PolicyText, prefix: Prefix, name: object, canonical: object) -> None:
    if str(name).lower().rstrip(".") == str(canonical).lower().rstrip("."):
        policy.lost([name, canonical], "it is another name for itself")
        return
    _name_to(policy, name, canonical)


def _name_to(policy: PolicyText, name: object, to: object) -> None:
    # `then lookup main` could come back to the same name, by an address that a map gives it.
    try:
        word = host_word(parse_name(str(name)))
        target = host_word(parse_host(str(to)))
    except AddressError as error:
        policy.lost([name, to], str(error))
        return
    policy.route(word, f"rewrite to {target} then direct")


def _do_map(policy: PolicyText, prefix: Prefix, name: object, attributes: object) -> None:
    try:
        word = f".{parse_name(str(name))}"
    except AddressError as error:
        policy.lost([name, attributes], str(error))
        return
    _reach(policy, word, attributes)


def _ip_map(policy: PolicyText, prefix: Prefix, block: object, attributes: object) -> None:
    address, slash, length = str(block).partition("/")
    try:
        packed = parse_address(address)
    except AddressError as error:
        policy.lost([block, attributes], str(error))
        return
    bits = len(packed) * 8
    wide = int(length) if length.isdecimal() and len(length) < 4 else bits if not slash else -1
    # An IPv4-mapped block is counted in bits of IPv6.
    wide -= 96 if ":" in address and bits == 32 else 0
    if not 0 <= wide <= bits:
        policy.lost([block, attributes], "it is no prefix")
        return
    first = int.from_bytes(packed) >> (bits - wide) << (bits - wide)
    _reach(policy, str(Prefix(4 if bits == 32 else 6, first, wide)), attributes)


def _reach(policy: PolicyText, word: str, attributes: object) -> None:
    """The route for an entry that says how its connections are made."""
    if attributes == "delete":
        policy.route(word, "deny")
        return
    action = None
    if isinstance(attributes, Mapping) and len(attributes) <= 2:
        action = _by_socks(policy, attributes) or _from_address(policy, attributes)
    if action is None:
        policy.lost([word, attributes], "no route says all of that")
    else:
        policy.route(word, action)


def _by_socks(policy: PolicyText, attributes: Mapping[object, object]) -> str | None:
    server = attributes.get("socks_server")
    if attributes.keys() - {"socks_server", "connFuncType"} or not isinstance(server, Mapping):
        return None
    if attributes.get("connFuncType", "socks") != "socks":
        return None
    if (path := path_word(str(server.get("path", "")))) is not None:
        name = policy.named("upstream", f"socks5 {{ unix {path} }}")
        return f"via {name}"
    port = _number(server.get("port"))
    if port is None or not 0 < port < 65536:
        return None
    try:
        return f"via socks5 {Endpoint(parse_host(str(server.get('host'))), port)}"
    except AddressError:
        return None


def _from_address(policy: PolicyText, attributes: Mapping[object, object]) -> str | None:
    key = next(iter(attributes), None)
    if len(attributes) != 1 or key not in ("bind_addr", "bind_addr4", "bind_addr4m", "bind_addr6"):
        return None
    try:
        address = address_text(parse_address(str(attributes[key])))
    except AddressError:
        return None
    name = policy.named("upstream", f"direct {{ source {address} }}")
    return f"via {name}"


def _number(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if value >= 0 else None
    text = str(value)
    try:
        return int(text, 0) if len(text) < 20 and not text.startswith("-") else None
    except ValueError:
        return None


_MAPS: dict[str, Callable[[PolicyText, Prefix, object, object], None]] = {
    "relay_map": _relay_map,
    "dc_map": _dc_map,
    "hosts_map": _hosts_map,
    "resolve_map": _resolve_map,
    "do_map": _do_map,
    "ip_map": _ip_map,
}
