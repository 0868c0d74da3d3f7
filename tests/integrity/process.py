"""A relay in a process of its own: `python -m tests.integrity.process SPEC`, SPEC a JSON object.

    limits          what `Limits` shall differ in from its defaults
    listeners       [[name, kind, host, port to forward to or null], …]; all bind 127.0.0.1, and the
                    kernel buffers of one called `small` are so
    routes          [[an address, a prefix or localhost, "direct" | "silent" | a unix path], …]
    descriptors     the soft limit, set once everything is open
    uid             whom to become once everything is imported
    forget          true: keep no records
    refuse_splices  every so many-th splice fails with EINVAL, as on a socket that knows none

It prints the ports of its listeners as a JSON line. Then every line on standard input is answered by
one on standard output: `report` by the numbers of this moment, `records` by how each connection that
ended since the last time did, `memory` by what is left when the garbage is collected. It ends when
standard input does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import gc
import itertools
import json
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

SMALL = 1 << 15


def refuse_every(number: int) -> None:
    """Make splice(2) fail now and then. Before anything keeps a reference to the real one."""
    real = os.splice
    calls = itertools.count(1)

    def splice(src: int, dst: int, count: int, *more: Any, **named: Any) -> int:
        if next(calls) % number == 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(src, dst, count, *more, **named)

    os.splice = splice


class Subject:
    """The relay, and what is asked of it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        # Imported here, so that `refuse_every` comes first.
        from tests import strategies as by_hand
        from urelay.engine.connect import Timeouts
        from urelay.engine.dial import Dialer
        from urelay.engine.limits import Limits
        from urelay.engine.relay import Relay
        from urelay.engine.resolve import Resolver
        from urelay.net.address import Endpoint
        from urelay.policy.model import Direct, ListenerKind, Silent, Unix
        from urelay.table.compile import compile_policy

        ways = {"direct": Direct(), "silent": Silent()}
        routes = [
            by_hand.route(by_hand.region(where, name=where == "localhost"), ways.get(to) or Unix(to), line)
            for line, (where, to) in enumerate(spec["routes"], 1)
        ]
        table = compile_policy(by_hand.policy(routes))
        self.records: list[tuple[Any, ...]] = []
        limits = dataclasses.replace(Limits.for_this_process(), **spec.get("limits", {}))
        note = (lambda record: None) if spec.get("forget") else self._note
        self.relay = Relay(table, Dialer(Resolver(), {}, Timeouts()), note, limits)
        self.ports: dict[str, int] = {}
        for name, kind, host, port in spec["listeners"]:
            sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
            if name == "small":
                # Inherited by every client's socket, so that the relay itself soon has to wait.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            to = None if port is None else Endpoint(socket.inet_aton(host), port)
            listener = dataclasses.replace(by_hand.listener(name, kind=ListenerKind(kind)), to=to)
            self.relay.add_listener(listener, sock)
            self.ports[name] = sock.getsockname()[1]
        self.answers: dict[str, Callable[[], Any]] = {
            "report": self._report,
            "records": self._take_records,
            "memory": self._memory,
        }

    def _note(self, record: Any) -> None:
        self.records.append((record.bytes_up, record.bytes_down, record.end.value, record.error))

    def _take_records(self) -> Any:
        taken, self.records = self.records, []
        return taken

    def _memory(self) -> Any:
        gc.collect()
        return len(gc.get_objects())

    def _report(self) -> Any:
        numbers = dataclasses.asdict(self.relay.snapshot())
        numbers["tasks"] = len(asyncio.all_tasks())
        numbers["timers"] = len(self.relay.wheel)
        numbers["watched"] = len(self.relay.poller)
        numbers["cpu_s"] = time.process_time()
        return numbers


async def main(spec: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    subject = Subject(spec)
    stopped = asyncio.Event()
    if "uid" in spec:
        os.setresgid(spec["uid"], spec["uid"], spec["uid"])
        os.setgroups([])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    if "descriptors" in spec:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec["descriptors"], spec["descriptors"]))
    waiting = bytearray()

    def asked() -> None:
        data = os.read(0, 4096)
        if not data:
            stopped.set()
        waiting.extend(data)
        *lines, rest = bytes(waiting).split(b"\n")
        waiting[:] = rest
        for line in lines:
            print(json.dumps(subject.answers[line.decode()]()), flush=True)

    loop.add_reader(0, asked)
    gc.collect()
    gc.freeze()
    print(json.dumps(subject.ports), flush=True)
    await stopped.wait()
    loop.remove_reader(0)
    subject.relay.close()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    told = json.loads(sys.argv[1])
    if "refuse_splices" in told:
        refuse_every(told["refuse_splices"])
    from urelay.engine.poller import RelayLoop

    with asyncio.Runner(loop_factory=RelayLoop) as runner:
        runner.run(main(told))
