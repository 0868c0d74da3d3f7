"""What `capture tcp` asks of the rest of a policy: one listener a namespace, and no way out through it.

A namespace whose connections are captured is no place to connect from: what an upstream dials there
would come back to the listener, and be dialled again. Whoever binds an address of the namespace
(`source`), a device (`dev`) or the mark that is left alone gets out.
"""

from __future__ import annotations

from collections.abc import Mapping

from urelay.lang.diagnostics import Label
from urelay.policy.flaws import Findings, flaw
from urelay.policy.model import UNCAPTURED, Listener, Upstream


def check_captures(
    listeners: Mapping[str, Listener], upstreams: Mapping[str, Upstream], findings: Findings
) -> None:
    """UR102 for two captures of one namespace, UR107 for upstreams that would be captured."""
    capturing: dict[str | None, Listener] = {}
    for listener in listeners.values():
        if not listener.captures:
            continue
        first = capturing.setdefault(_path(listener.netns), listener)
        if first is not listener:
            message = f'"{listener.name}" captures the connections that "{first.name}" does'
            label = Label(first.node.name.span, "first here")
            findings.keep(flaw("UR102", message, listener.node.name.span, None, label))
    for upstream in upstreams.values():
        setting = upstream.options.get("netns")
        netns = setting.value if setting is not None else None
        if not isinstance(netns, str) or _escapes(upstream):
            continue
        taker = capturing.get(_path(netns))
        if taker is not None:
            message = f'what "{upstream.name}" dials is captured by "{taker.name}" and comes back'
            help_text = f"bind an address of that namespace (source …), or say mark {UNCAPTURED:#x}"
            label = Label(taker.node.name.span, "captures it")
            findings.keep(flaw("UR107", message, upstream.node.span, help_text, label))


def _path(netns: str | None) -> str | None:
    """One spelling for a namespace's name and for the path of that name."""
    return netns if netns is None or "/" in netns else f"/run/netns/{netns}"


def _escapes(upstream: Upstream) -> bool:
    mark = upstream.options.get("mark")
    marked = mark is not None and mark.value == UNCAPTURED
    return marked or bool(upstream.options.keys() & {"source", "dev"})
