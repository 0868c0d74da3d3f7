"""One connection as a line of the access log (urelay.services.access_log says what is in it).

Made by hand and not from a dictionary: a line is written for every connection, and with a general
encoder it costs a tenth of a short connection. What makes that safe is that three kinds of text
occur: those we made ourselves (addresses, numbers, digests, words of the language), which need no
escaping; those that connections to one place repeat (routes, upstreams, names), which are encoded once
and kept as a template; and errors, which go through the encoder each time.
"""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from urelay.net.address import Endpoint, address_text, printable

if TYPE_CHECKING:
    from urelay.engine.record import Record
    from urelay.table.decision import Decision

_LONGEST_TEXT = 300
"""Characters of an error; names are 253 at most"""
_MOST_KNOWN = 4096

_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


class _Form(NamedTuple):
    """What the lines of one decision, listener, destination and way have in common."""

    decision: Decision | None
    """Kept, so that its id is not given to another one"""
    template: str
    """The line, to be filled in with: second, millisecond, id, source, bytes up, bytes down,
    milliseconds, end, error"""
    log: str
    """How much the route wants logged: `end`, `full` or `off`"""


def line(record: Record) -> str:
    """The line of one connection, with its newline; empty if its route wants none."""
    number, ts, listener, client, asked, _, decision, way, _, up, down, duration_s, end, error = record
    form = _known.get((id(decision), listener, asked, way)) or _learn(decision, listener, asked, way)
    if form.log == "off":
        return ""
    if client is None:
        source = "null"
    else:
        host, port = client
        text = address_text(host)
        source = f'"[{text}]:{port}"' if ":" in text else f'"{text}:{port}"'
    seconds = int(ts)
    text = form.template % (
        _second(seconds), (ts - seconds) * 1000, number, source, up, down, duration_s * 1000 + 0.5, end,
        "null" if error is None else _error(error),
    )  # fmt: skip
    return text if form.log != "full" else _in_full(text, record)


def _in_full(text: str, record: Record) -> str:
    """The line with every step of the way."""
    return f'{text[:-2]},"rewrites":{_encode(record.rewrites)},"tries":{_encode(record.tries)}}}\n'


def _learn(
    decision: Decision | None, listener: str, asked: Endpoint | None, way: Endpoint | str | None
) -> _Form:
    form = _Form(decision, _template(decision, listener, asked, way), _log_of(decision))
    if decision is None or decision.destination is None:
        # Made when the table was compiled; one with a destination was made for a single connection.
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[id(decision), listener, asked, way] = form
    return form


def _log_of(decision: Decision | None) -> str:
    return "end" if decision is None else decision.settings.log


def _template(
    decision: Decision | None, listener: str, asked: Endpoint | None, way: Endpoint | str | None
) -> str:
    name = port = destination = "null"
    if asked is not None:
        port = str(asked.port)
        if isinstance(asked.host, str):
            name = _encode(asked.host)
        else:
            destination = f'"{address_text(asked.host)}"'
    policy = outcome = route = upstream = "null"
    end = ""
    if decision is not None:
        policy, outcome = _encode(decision.policy), _encode(decision.outcome.value)
        route = _encode(None if decision.route is None else str(decision.route))
        upstream = _encode(decision.upstream)
        if decision.settings.tag is not None:
            end += f',"tag":{_encode(decision.settings.tag)}'
        if decision.wall is not None:
            end += f',"wall":{_encode(str(decision.wall))}'
        if decision.settings.log == "full":
            end += f',"table":{_encode(decision.table)}'
    dialed = _encode(None if way is None else str(way))
    to = f'"destination":{destination},"name":{name},"port":{port}'
    by = f'"outcome":{outcome},"route":{route},"upstream":{upstream},"dialed":{dialed}'
    return (
        f'{{"ts":"%s.%03dZ","id":%d,"policy":{_literal(policy)},"listener":{_literal(_encode(listener))},'
        f'"source":%s,{_literal(to)},{_literal(by)},"bytes_up":%d,"bytes_down":%d,"duration_ms":%d,'
        f'"end":"%s","error":%s{_literal(end)}}}\n'
    )


def _literal(text: str) -> str:
    """What `%` makes `text` of."""
    return text.replace("%", "%%")


_known: dict[tuple[int, str, Endpoint | None, Endpoint | str | None], _Form] = {}


def _error(text: str) -> str:
    return _encode(printable(text, _LONGEST_TEXT))


@functools.lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    """A second since the epoch as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
