"""Connections as lines of the access log (urelay.services.access_log says what is in one).

Made by hand and not from a dictionary: a line is written for every connection, and with a general
encoder it costs a tenth of a short connection; and many in one go, since code that was just run is
faster. What makes that safe is that three kinds of text occur: those we made ourselves (addresses,
numbers, digests, words of the language), which need no escaping; those that connections to one place
repeat (routes, upstreams, names), which are encoded once and kept; and errors, which go through the
encoder each time.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from urelay.engine.ends import packed
from urelay.engine.record import End
from urelay.net.address import Address, Endpoint, address_text, printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from urelay.engine.record import Record
    from urelay.table.decision import Decision

_LONGEST_TEXT = 300
"""Characters of an error; names are 253 at most"""
_MOST_KNOWN = 4096

_log = logging.getLogger(__name__)
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode


class _Form(NamedTuple):
    """What the lines of one decision, listener, destination and way have in common, as JSON."""

    head: str
    """Between the id and the source"""
    middle: str
    """Between the source and the bytes"""
    tail: str
    """Behind the error"""
    log: str
    """How much the route wants logged: `end`, `full` or `off`"""
    decision: Decision | None
    """Kept, so that its id is not given to another one"""


def lines(records: Iterable[Record]) -> str:
    """The lines of connections that have ended, each with its newline; none where a route wants none."""
    found = []
    now, moment = -1, ""
    for record in records:
        number, ts, listener, client, asked, _, decision, way, _, up, down, duration_s, end, error = record
        try:
            form = _known.get((id(decision), listener, asked, way)) or _learn(decision, listener, asked, way)
            head, middle, tail, log, _ = form
            if log == "off":
                continue
            source = "null"
            if isinstance(client, tuple):
                host = client[0]
                source = f'{_sources.get(host) or _learn_source(host)}{client[1]}"'
            second = int(ts)
            if second != now:
                now, moment = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            text = (
                f'{{"ts":"{moment}.{_MILLISECONDS[int((ts - second) * 1000)]}Z","id":{number}{head}{source}'
                f'{middle}{up},"bytes_down":{down},"duration_ms":{int(duration_s * 1000 + 0.5)}{_ENDS[end]}'
                f"{'null' if error is None else _error(error)}{tail}"
            )
            found.append(text if log != "full" else _in_full(text, record))
        except Exception:
            _log.exception("the record of connection %d was lost", number)
    return "".join(found)


def _in_full(text: str, record: Record) -> str:
    """The line with every step of the way."""
    return f'{text[:-2]},"rewrites":{_encode(record.rewrites)},"tries":{_encode(record.tries)}}}\n'


def _learn(
    decision: Decision | None, listener: str, asked: Endpoint | None, way: Endpoint | str | None
) -> _Form:
    form = _form(decision, listener, asked, way)
    if decision is None or decision.destination is None:
        # Made when the table was compiled; one with a destination was made for a single connection.
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[id(decision), listener, asked, way] = form
    return form


def _form(
    decision: Decision | None, listener: str, asked: Endpoint | None, way: Endpoint | str | None
) -> _Form:
    name = port = destination = "null"
    if asked is not None:
        port = str(asked.port)
        if isinstance(asked.host, str):
            name = _encode(asked.host)
        else:
            destination = f'"{address_text(asked.host)}"'
    policy = outcome = route = upstream = "null"
    tail, log = "", "end"
    if decision is not None:
        policy, outcome = _encode(decision.policy), _encode(decision.outcome.value)
        route = _encode(None if decision.route is None else str(decision.route))
        upstream = _encode(decision.upstream)
        log = decision.settings.log
        if decision.settings.tag is not None:
            tail += f',"tag":{_encode(decision.settings.tag)}'
        if decision.wall is not None:
            tail += f',"wall":{_encode(str(decision.wall))}'
        if log == "full":
            tail += f',"table":{_encode(decision.table)}'
    dialed = _encode(None if way is None else str(way))
    head = f',"policy":{policy},"listener":{_encode(listener)},"source":'
    middle = (
        f',"destination":{destination},"name":{name},"port":{port},"outcome":{outcome},"route":{route},'
        f'"upstream":{upstream},"dialed":{dialed},"bytes_up":'
    )
    return _Form(head, middle, tail + "}\n", log, decision)


_known: dict[tuple[int, str, Endpoint | None, Endpoint | str | None], _Form] = {}


_ENDS = {end: f',"end":"{end.value}","error":' for end in End}
_MILLISECONDS = tuple(f"{number:03}" for number in range(1000))


def _learn_source(host: Address | str) -> str:
    """The source before its port; as text it is the kernel's."""
    if len(_sources) >= _MOST_KNOWN:
        _sources.clear()
    text = address_text(packed(host) if isinstance(host, str) else host)
    start = _sources[host] = f'"[{text}]:' if ":" in text else f'"{text}:'
    return start


_sources: dict[Address | str, str] = {}


def _error(text: str) -> str:
    return _encode(printable(text, _LONGEST_TEXT))
