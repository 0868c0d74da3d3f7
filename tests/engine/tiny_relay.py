"""A relay in a process of its own, for tests of what a process has: `tiny_relay SERVER-PORT DESCRIPTORS`.

Prints the port of its forward listener, relays until standard input ends, then prints its CPU
seconds and how often accepting paused.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import sys
from dataclasses import replace

from tests import strategies as by_hand
from urelay.engine.connect import Timeouts
from urelay.engine.dial import Dialer
from urelay.engine.limits import Limits
from urelay.engine.poller import RelayLoop
from urelay.engine.relay import Relay
from urelay.engine.resolve import Resolver
from urelay.net.address import Endpoint
from urelay.policy.model import Direct, ListenerKind
from urelay.table.compile import compile_policy


async def main(server_port: int, descriptors: int) -> None:
    loop = asyncio.get_running_loop()
    table = compile_policy(by_hand.policy([by_hand.route(by_hand.region("127.0.0.0/8"), Direct())]))
    relay = Relay(table, Dialer(Resolver(), {}, Timeouts()), lambda record: None, Limits(accept_pause_s=0.1))
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    to = Endpoint(bytes((127, 0, 0, 1)), server_port)
    listener = replace(by_hand.listener("forward", kind=ListenerKind.FORWARD), to=to)
    relay.add_listener(listener, sock)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    print(sock.getsockname()[1], flush=True)
    stopped = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), stopped.set)
    await stopped.wait()
    loop.remove_reader(sys.stdin.fileno())
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, relay.snapshot().accept_pauses, flush=True)
    relay.close()


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    with asyncio.Runner(loop_factory=RelayLoop) as runner:
        runner.run(main(int(sys.argv[1]), int(sys.argv[2])))
