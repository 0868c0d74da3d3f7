"""Ways out: `upstream` definitions become model.Upstream.

Each is checked by itself; then, once all are known, no upstream may be reached through itself, by
`via` or as a member of a group (UR107).
"""

from __future__ import annotations

from collections.abc import Mapping

from urelay.errors import PolicyError
from urelay.lang import ast
from urelay.lang.printer import statement_text
from urelay.net.address import Endpoint, printable
from urelay.policy.flaws import flaw, password, read_word, unknown
from urelay.policy.model import Setting, Upstream, UpstreamKind
from urelay.policy.options import CLASHES, NEEDS, Owner
from urelay.policy.scope import Scope
from urelay.policy.values import origin_of, read_options, refuse_password
from urelay.policy.words import read_endpoint

_KINDS = tuple(kind.value for kind in UpstreamKind)
_HINT = f"; there are {', '.join(_KINDS)}"
_GROUPS = (UpstreamKind.FIRST, UpstreamKind.SPREAD)
_DEEPEST = 64


def resolve_upstream(node: ast.UpstreamDef, scope: Scope) -> Upstream:
    """The meaning of one definition. Raises PolicyError: the first thing wrong with it."""
    # Before anything else is wrong: whatever is found draws the line, password and all.
    for option in node.options:
        refuse_password(option)
    for word in node.arguments:
        _refuse_login_in(word)
    if node.kind.text not in _KINDS:
        raise unknown("kind of upstream", node.kind.text, node.kind.span, _KINDS, _HINT)
    kind = UpstreamKind(node.kind.text)
    settings, _ = read_options(node.options, Owner.UPSTREAM, kind, scope)
    _check_together(node, kind, settings)
    endpoint: Endpoint | None = None
    members: tuple[str, ...] = ()
    if kind in _GROUPS:
        members = _members(node, scope)
    elif kind is UpstreamKind.DIRECT:
        if node.arguments:
            message = "a direct upstream dials every destination itself: no address"
            raise flaw("UR110", message, node.arguments[0].span)
    else:
        endpoint = _endpoint(node, settings)
    origin = origin_of(node.span, statement_text(node))
    return Upstream(node.name.text, kind, endpoint, members, settings, origin, node)


def read_proxy(word: ast.Word) -> Endpoint:
    """The HOST:PORT of a proxy. Raises PolicyError, UR114 for `user:password@HOST:PORT`."""
    _refuse_login_in(word)
    return read_word(word, read_endpoint)


def _refuse_login_in(word: ast.Word) -> None:
    if "@" in word.text:
        raise password(word.span)


def check_chains(upstreams: Mapping[str, Upstream], scope: Scope) -> None:
    """Report every upstream that is reached through itself (UR107), once where a walk meets it again.

    And every one that is the first to be reached through too many: whoever opens ways follows them by
    calling himself.
    """
    done: dict[str, int] = {}
    """How many stand behind each other from it on"""
    looped: set[str] = set()
    for start in upstreams:
        # Depth first, with a stack of its own: a chain may be longer than Python's.
        path = [start] if start not in done else []
        ways = [iter(_next(upstreams[start]))]
        while path:
            following = next(ways[-1], None)
            if following is None:
                name = path.pop()
                ways.pop()
                done[name] = 1 + max((done.get(each, 0) for each in _next(upstreams[name])), default=0)
                if done[name] == _DEEPEST + 1 and not looped:
                    message = f"upstreams stand more than {_DEEPEST} deep behind each other"
                    scope.findings.keep(flaw("UR107", message, scope.upstreams[name].name.span))
            elif following in path and following not in looped:
                looped.add(following)
                scope.findings.keep(_loop(following, path, scope))
            elif following in upstreams and following not in done and following not in path:
                path.append(following)
                ways.append(iter(_next(upstreams[following])))


def _loop(name: str, path: list[str], scope: Scope) -> PolicyError:
    message = f'upstream "{printable(name)}" is reached through itself'
    loop = " through ".join([*path[path.index(name) :], name])
    return flaw("UR107", message, scope.upstreams[name].name.span, note=loop)


def _next(upstream: Upstream) -> tuple[str, ...]:
    return upstream.members if upstream.via is None else (upstream.via,)


def _members(node: ast.UpstreamDef, scope: Scope) -> tuple[str, ...]:
    members = tuple(scope.upstream(word) for word in node.arguments)
    if not members:
        raise flaw("UR110", f"`{node.kind.text}` needs upstreams to choose from", node.kind.span)
    for place, member in enumerate(members):
        if member in members[:place]:
            raise flaw("UR102", f'"{member}" is in this group twice', node.arguments[place].span)
    return members


def _endpoint(node: ast.UpstreamDef, settings: Mapping[str, Setting]) -> Endpoint | None:
    if len(node.arguments) == 1 and "unix" not in settings:
        return read_proxy(node.arguments[0])
    if not node.arguments and "unix" in settings:
        return None
    kind = node.kind.text
    if "unix" in settings:
        message = "the proxy has two places: HOST:PORT and `unix`"
    elif node.arguments:
        message = f"`{kind}` takes one HOST:PORT; options go in braces"
    else:
        message = f"`{kind}` needs a HOST:PORT, or the option `unix`"
    raise flaw("UR110", message, (node.arguments[-1] if node.arguments else node.kind).span)


def _check_together(node: ast.UpstreamDef, kind: UpstreamKind, settings: Mapping[str, Setting]) -> None:
    spans = {option.name.text: option.span for option in node.options}
    for name, needed in NEEDS.items():
        if name in settings and needed not in settings:
            raise flaw("UR109", f"`{name}` means nothing without `{needed}`", spans[name])
    if {"tls", "unix"} <= settings.keys() and not {"server-name", "insecure"} & settings.keys():
        message = "`tls` on a unix socket has no name to verify: it needs `server-name`, or `insecure`"
        raise flaw("UR109", message, spans["tls"])
    if kind is UpstreamKind.DIRECT and "via" in settings and not {"tls", "send-proxy"} & settings.keys():
        # It would lead where the other one leads, under another name: whoever wrote it wanted more.
        message = "`via` on a direct upstream means nothing without `tls` or `send-proxy`"
        raise flaw("UR109", message, spans["via"], "what it names leads to the destination already")
    for one, other, why in CLASHES:
        if one in settings and other in settings:
            raise flaw("UR109", f"`{other}` cannot stand beside `{one}`: {why}", spans[other])
