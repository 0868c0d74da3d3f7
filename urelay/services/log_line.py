"""One connection as a line of the access log (urelay.services.access_log says what is in it).

Made by hand and not from a dictionary: a line is written for every connection, and with a general
encoder it costs a tenth of a short connection. What makes that safe is that three kinds of text
occur: those we made ourselves (addresses, numbers, digests, words of the language), which need no
escaping; those a decision repeats (routes, upstreams, tags), which are encoded once and kept; and
the rest (names, errors), which goes through the encoder each time.
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
    """What every line of one decision has in common, as a template for the rest."""

    decision: Decision | None
    """Kept, so that its id is not given to another one"""
    template: str
    """Filled in with: second, millisecond, id, listener, source, destination, name, port, dialed, bytes
    up, bytes down, milliseconds, end, error"""
    log: str
    """How much the route wants logged: `end`, `full` or `off`"""


def line(record: Record) -> str:
    """The line of one connection, with its newline; empty if its route wants none."""
    number, ts, listener, client, asked, _, decision, way, _, up, down, duration_s, end, error = record
    form = _known.get(id(decision)) or _learn(decision)
    if form.log == "off":
        return ""
    name = port = destination = dialed = source = "null"
    if asked is not None:
        host, port = asked  # type: ignore[assignment]
        if isinstance(host, str):
            name = _encode(host)
        else:
            destination = f'"{address_text(host)}"'
    if client is not None:
        text = address_text(client.host)
        source = f'"[{text}]:{client.port}"' if ":" in text else f'"{text}:{client.port}"'
    if way is not None:
        dialed = _place(way)
    seconds = int(ts)
    text = form.template % (
        _second(seconds), (ts - seconds) * 1000, number, _text(listener), source, destination, name, port,
        dialed, up, down, duration_s * 1000 + 0.5, end, "null" if error is None else _error(error),
    )  # fmt: skip
    return text if form.log != "full" else _in_full(text, record)


def _in_full(text: str, record: Record) -> str:
    """The line with every step of the way."""
    return f'{text[:-2]},"rewrites":{_encode(record.rewrites)},"tries":{_encode(record.tries)}}}\n'


def _learn(decision: Decision | None) -> _Form:
    if decision is None:
        return _UNDECIDED
    route = _encode(None if decision.route is None else str(decision.route))
    outcome = f'"outcome":"{decision.outcome.value}","route":{route},"upstream":{_encode(decision.upstream)}'
    end = ""
    if decision.settings.tag is not None:
        end += f',"tag":{_encode(decision.settings.tag)}'
    if decision.wall is not None:
        end += f',"wall":{_encode(str(decision.wall))}'
    log = decision.settings.log
    if log == "full":
        end += f',"table":{_encode(decision.table)}'
    form = _Form(decision, _template(_encode(decision.policy), outcome, end), log)
    if decision.destination is None:
        # Made when the table was compiled; one with a destination was made for a single connection.
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[id(decision)] = form
    return form


def _template(policy: str, outcome: str, end: str) -> str:
    policy, outcome, end = (text.replace("%", "%%") for text in (policy, outcome, end))
    return (
        f'{{"ts":"%s.%03dZ","id":%d,"policy":{policy},"listener":%s,"source":%s,"destination":%s,'
        f'"name":%s,"port":%s,{outcome},"dialed":%s,"bytes_up":%d,"bytes_down":%d,"duration_ms":%d,'
        f'"end":"%s","error":%s{end}}}\n'
    )


_known: dict[int, _Form] = {}
_UNDECIDED = _Form(None, _template("null", '"outcome":null,"route":null,"upstream":null', ""), "end")


@functools.lru_cache(maxsize=1024)
def _place(way: Endpoint | str) -> str:
    """What was dialled: one of a few, as a rule."""
    return _encode(str(way))


def _error(text: str) -> str:
    return _encode(printable(text, _LONGEST_TEXT))


@functools.cache
def _text(word: str) -> str:
    """A listener's name: one of a few."""
    return _encode(word)


@functools.lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    """A second since the epoch as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
