"""Ways in: `listen` and `dns` definitions become model.Listener and model.DnsService.

The one rule about exposure stands here: a listener that anybody can ask for anything (`socks`, `http`,
`mixed`) on a wildcard address needs `users` or the word `open` (UR119). With `netns` it is exempt: it
listens inside a namespace somebody chose to connect to it, and not on the host's own addresses. A socket
that is handed over (`fd`, `systemd`) or lies in the file system has been placed by someone else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from urelay.lang import ast
from urelay.lang.diagnostics import Label
from urelay.lang.printer import statement_text
from urelay.lang.source import Span
from urelay.net.address import Endpoint, printable
from urelay.policy.flaws import Findings, flaw, read_word, unknown
from urelay.policy.model import (
    AcceptProxy,
    DnsService,
    HeaderTarget,
    Listener,
    ListenerKind,
    Place,
    PlaceKind,
    Setting,
    Slot,
)
from urelay.policy.options import Owner
from urelay.policy.paths import read_socket_path
from urelay.policy.scope import Scope
from urelay.policy.values import origin_of, read_options
from urelay.policy.words import read_endpoint, read_number, read_place, read_slot

_KINDS = tuple(kind.value for kind in ListenerKind)
_ASKED_FOR_ANYTHING = (ListenerKind.SOCKS, ListenerKind.HTTP, ListenerKind.MIXED)
_HINT = f"; there are {', '.join(_KINDS)}"
_BY_LOCAL_ADDRESS = (ListenerKind.TRANSPARENT, ListenerKind.REDIRECT)
_IN_FILES = (PlaceKind.UNIX, PlaceKind.SOCKETBOX)
_WILDCARDS = (bytes(4), bytes(16))
_PLACES = 'ADDR:PORT, fd N, fd env NAME, systemd "NAME", unix "PATH" or socketbox "PATH" (perhaps slot N)'
_VARIABLE = re.compile(r"[A-Za-z_][0-9A-Za-z_]*")
_SYSTEMD_NAME = re.compile(r"[^\s:\x00-\x1f\x7f]{1,255}")
_HIGHEST_FD = 1_048_575


def resolve_listener(node: ast.ListenDef, scope: Scope) -> Listener:
    """The meaning of one definition. Raises PolicyError: the first thing wrong with it."""
    if node.kind.text not in _KINDS:
        raise unknown("kind of listener", node.kind.text, node.kind.span, _KINDS, _HINT)
    kind = ListenerKind(node.kind.text)
    place = _place(node.place, node.kind)
    settings, tables = read_options(node.options, Owner.LISTENER, kind, scope)
    _check_place(node, kind, place, settings)
    _check_header(node, kind, place, settings)
    to = _forwarded_to(node, kind)
    origin = origin_of(node.span, statement_text(node))
    return Listener(node.name.text, kind, place, to, tables, settings, origin, node)


def resolve_service(node: ast.DnsDef, scope: Scope) -> DnsService:
    """The meaning of one `dns` definition. Raises PolicyError."""
    if len(node.place) != 1:
        raise flaw("UR110", "a dns service listens on ADDR:PORT", node.name.span)
    endpoint = read_word(node.place[0], read_place)
    settings, _ = read_options(node.options, Owner.DNS, "", scope)
    if "fake" not in settings and "forward" not in settings:
        message = "this dns service has no answers: it needs `fake` or `forward`"
        raise flaw("UR110", message, node.name.span)
    place = Place(PlaceKind.ADDRESS, endpoint=endpoint)
    return DnsService(node.name.text, place, settings, origin_of(node.span, statement_text(node)), node)


def check_places(listeners: Mapping[str, Listener], findings: Findings) -> None:
    """UR102 for two listeners in one place: the second could never be bound."""
    taken: dict[tuple[Place, str | None], Listener] = {}
    for listener in listeners.values():
        first = taken.setdefault((listener.place, listener.netns), listener)
        if first is not listener:
            message = f'"{listener.name}" listens where "{first.name}" does'
            here, there = (_place_span(one.node) for one in (listener, first))
            findings.keep(flaw("UR102", message, here, None, Label(there, "first here")))


def check_slots(listeners: Mapping[str, Listener], slots: Collection[Slot], findings: Findings) -> None:
    """UR107 for a listener that would wait for the relay's own slots, UR102 for one in their place."""
    desks = {slot.path for slot in slots}
    taken = desks | {slot.box for slot in slots}
    for listener in listeners.values():
        place = listener.place
        if place.slot is not None and place.text in desks:
            message = f'"{listener.name}" registers for a slot of this very policy'
            findings.keep(flaw("UR107", message, _place_span(listener.node)))
        elif place.kind in _IN_FILES and place.text in taken:
            message = f'"{listener.name}" listens where a route has its slots'
            findings.keep(flaw("UR102", message, _place_span(listener.node)))


def _place_span(node: ast.ListenDef) -> Span:
    return node.place[0].span.to(node.place[-1].span)


def _place(words: tuple[ast.Word, ...], kind: ast.Word) -> Place:
    match words:
        case (ast.Word() as address,) if not address.quoted and ":" in address.text:
            return Place(PlaceKind.ADDRESS, endpoint=read_word(address, read_place))
        case (ast.Word("fd", quoted=False), ast.Word() as number):
            return Place(PlaceKind.FD, fd=read_word(number, lambda text: read_number(text, 0, _HIGHEST_FD)))
        case (ast.Word("fd", quoted=False), ast.Word("env", quoted=False), ast.Word() as name):
            return Place(PlaceKind.FD_ENV, text=_named(name, _VARIABLE, "an environment variable"))
        case (ast.Word("systemd", quoted=False), ast.Word() as name):
            return Place(PlaceKind.SYSTEMD, text=_named(name, _SYSTEMD_NAME, "the name of a systemd socket"))
        case (ast.Word("unix", quoted=False), ast.Word() as path):
            return Place(PlaceKind.UNIX, text=read_socket_path(path))
        case (ast.Word("socketbox", quoted=False), ast.Word() as path):
            return Place(PlaceKind.SOCKETBOX, text=read_socket_path(path))
        case (
            ast.Word("socketbox", quoted=False),
            ast.Word() as path,
            ast.Word("slot", quoted=False),
            ast.Word() as number,
        ):
            return Place(PlaceKind.SOCKETBOX, text=read_socket_path(path), slot=read_word(number, read_slot))
        case ():
            raise flaw("UR110", f"`{kind.text}` needs a place to listen: {_PLACES}", kind.span)
    shown = printable(" ".join(word.text for word in words))
    span = words[0].span.to(words[-1].span)
    raise flaw("UR110", f"`{shown}` is not a place to listen: {_PLACES}", span)


def _named(word: ast.Word, pattern: re.Pattern[str], what: str) -> str:
    if not pattern.fullmatch(word.text):
        raise flaw("UR110", f"`{printable(word.text)}` is not {what}", word.span)
    return word.text


def _forwarded_to(node: ast.ListenDef, kind: ListenerKind) -> Endpoint | None:
    if kind is ListenerKind.FORWARD:
        if node.to is None:
            raise flaw("UR110", "`forward` needs a destination: to HOST:PORT", node.kind.span)
        return read_word(node.to, read_endpoint)
    if node.to is not None:
        message = f"only `forward` has a destination; `{kind}` learns it from the client"
        raise flaw("UR110", message, node.to.span)
    return None


def _check_header(
    node: ast.ListenDef, kind: ListenerKind, place: Place, settings: Mapping[str, Setting]
) -> None:
    """Whose PROXY headers are believed must be said; which destination counts, where there is a choice."""
    setting = settings.get("accept-proxy")
    if setting is None or not isinstance(setting.value, AcceptProxy):
        return
    option = next(option for option in node.options if option.name.text == "accept-proxy")
    if not setting.value.senders and place.kind not in _IN_FILES:
        message = "`accept-proxy` believes whoever it is said to: from ADDRESSES"
        raise flaw("UR110", message, option.span, "write it like: accept-proxy from 192.0.2.0/28")
    if setting.value.senders and place.kind is PlaceKind.UNIX:
        message = "clients of a unix socket have no address: its file's mode says who they are"
        raise flaw("UR110", message, option.span, "leave out `from` and what follows it")
    if setting.value.target is not HeaderTarget.NAME and kind not in _BY_LOCAL_ADDRESS:
        message = (
            f"`as {setting.value.target}` chooses among destinations, and `{kind}` takes none from the header"
        )
        raise flaw("UR110", message, option.span)


def _check_place(
    node: ast.ListenDef, kind: ListenerKind, place: Place, settings: Mapping[str, Setting]
) -> None:
    spans = {option.name.text: option.span for option in node.options}
    if place.kind is not PlaceKind.ADDRESS:
        for name in ("netns", "capture"):
            if name in settings:
                message = f"`{name}` is for a listener at ADDR:PORT"
                raise flaw("UR109", message, spans[name])
    if (place.kind not in _IN_FILES or place.slot is not None) and "mode" in settings:
        message = '`mode` is for a listener at unix "PATH" or socketbox "PATH": no other makes a file'
        raise flaw("UR109", message, spans["mode"])
    # A PROXY header tells what the socket cannot.
    nowhere = kind in _BY_LOCAL_ADDRESS and "accept-proxy" not in settings
    if place.kind is PlaceKind.UNIX and nowhere:
        message = f"`{kind}` reads the destination off the socket, and a unix socket has none"
        raise flaw("UR110", message, _place_span(node), "a PROXY header tells: accept-proxy")
    if place.endpoint is None or place.endpoint.host not in _WILDCARDS or kind not in _ASKED_FOR_ANYTHING:
        return
    if not settings.keys() & {"users", "open", "netns"}:
        message = f"this `{kind}` listener is open to everyone: a wildcard address, no `users`, no `open`"
        raise flaw(
            "UR119", message, _place_span(node), 'listen on 127.0.0.1, or ask for a login: users "FILE"'
        )
