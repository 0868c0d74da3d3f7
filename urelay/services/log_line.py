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


class _Phrases(NamedTuple):
    """What every line of one decision has in common."""

    decision: Decision | None
    """Kept, so that its id is not given to another one"""
    policy: str
    outcome: str
    """From `outcome` to `upstream`"""
    end: str
    """`tag` and `wall`, where there are"""
    log: str
    """How much of it the route wants: `end`, `full` or `off`"""


def line(record: Record) -> str:
    """The line of one connection, with its newline; empty if its route wants none."""
    decision = record.decision
    phrases = _known.get(id(decision)) or _learn(decision)
    if phrases.log == "off":
        return ""
    name = port = destination = dialed = source = error = "null"
    if record.asked is not None:
        host, number = record.asked
        port = str(number)
        if isinstance(host, str):
            name = _encode(host)
        else:
            destination = f'"{address_text(host)}"'
    if record.client is not None:
        source = _endpoint(record.client)
    way = record.way
    if way is not None:
        dialed = _endpoint(way) if isinstance(way, Endpoint) else _encode(way)
    if record.error is not None:
        error = _encode(printable(record.error, _LONGEST_TEXT))
    end = phrases.end
    if phrases.log == "full":
        end += f',"rewrites":{_encode(record.rewrites)},"tries":{_encode(record.tries)}'
    seconds = int(record.ts)
    return (
        f'{{"ts":"{_second(seconds)}.{int((record.ts - seconds) * 1000):03}Z","id":{record.id},'
        f'"policy":{phrases.policy},"listener":{_text(record.listener)},"source":{source},'
        f'"destination":{destination},"name":{name},"port":{port},{phrases.outcome},"dialed":{dialed},'
        f'"bytes_up":{record.bytes_up},"bytes_down":{record.bytes_down},'
        f'"duration_ms":{round(record.duration_s * 1000)},"end":"{record.end}","error":{error}{end}}}\n'
    )


def _learn(decision: Decision | None) -> _Phrases:
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
    phrases = _Phrases(decision, _encode(decision.policy), outcome, end, log)
    if decision.destination is None:
        # Made when the table was compiled; one with a destination was made for a single connection.
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[id(decision)] = phrases
    return phrases


_known: dict[int, _Phrases] = {}
_UNDECIDED = _Phrases(None, "null", '"outcome":null,"route":null,"upstream":null', "", "end")


def _endpoint(endpoint: Endpoint) -> str:
    host, port = endpoint
    text = address_text(host) if isinstance(host, bytes) else host
    return f'"[{text}]:{port}"' if ":" in text else f'"{text}:{port}"'


@functools.cache
def _text(word: str) -> str:
    """A listener's name: one of a few."""
    return _encode(word)


@functools.lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    """A second since the epoch as ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
