"""`urelay serve`: starts the relay, reloads its policy, and ends it without cutting anybody off.

    start     prepare the generation, raise the descriptor limit, open every listener, say so
    SIGHUP    prepare another generation beside, on a thread; open what listens anew; swap
    SIGUSR1   open the access log's file again (SIGHUP does so too)
    SIGUSR2   say in one line what was relayed so far
    SIGTERM   accept nobody, let connections finish for `drain_s`, close; a second signal: at once

A swap happens between two events of the loop: the table, the dialer and the listeners change
together, and every connection keeps the table it was accepted under. Whatever fails before it
leaves the running generation as it is, and says why.

That is a relay in one process. With workers the process that was started relays nothing, and
answers the same signals (urelay.services.supervisor).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from urelay.engine.limits import Limits
from urelay.engine.poller import RelayLoop
from urelay.engine.resolve import Resolver
from urelay.errors import AddressError, StartError
from urelay.net.address import Endpoint, parse_address, parse_endpoint
from urelay.services.access_log import open_sink
from urelay.services.answers import Answers
from urelay.services.generation import Generation, prepare
from urelay.services.holdings import Holdings
from urelay.services.log import logging_to
from urelay.services.notify import Notifier
from urelay.services.preparing import Prepared, Preparing
from urelay.services.running import Running
from urelay.services.sink import Sink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from urelay.services.listeners import Opened

_STANDARD_ERROR = 2
_DNS_PORT = 53
_STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says beside the policy."""

    access_log: str | None = None
    """A file, `-` for standard output, or None: no access log"""
    drain_s: float = 60.0
    resolver: str | None = None
    """`ADDR[:PORT]` of a DNS server to ask instead of the system's"""
    max_connections: int | None = None
    workers: int = 1
    """Processes that relay"""
    inherited: frozenset[int] = frozenset()
    """The descriptors that were handed to this process"""

    def limits(self, worker: int = 0) -> Limits:
        """The bounds of one worker's relay, counted from 0: its share where a total was asked for.

        Workers of an older policy, whose connections are still to end, are not counted.
        """
        limits = Limits.for_this_process()
        if self.max_connections is None:
            return limits
        # Over all workers these add up to the total, and no two differ by more than one.
        return limits.carrying((self.max_connections + worker) // self.workers)


def serve(path: str, options: Options) -> int:
    """Relay by the policy in a file until told to stop; returns the exit status, 0.

    Raises PolicyError and StartError when it cannot start; then nothing is left open.
    """
    resolver = Resolver(_servers(options.resolver))
    generation = prepare(path)
    if options.max_connections is not None and options.max_connections < options.workers:
        raise StartError(f"--max-connections: {options.max_connections} is less than one for each worker")
    _raise_descriptor_limit()
    holdings = Holdings(os.environ, options.inherited)
    if options.workers > 1:
        from urelay.services.supervisor import supervise

        supervise(path, options, holdings, resolver, generation)
        return 0
    with contextlib.ExitStack() as at_exit:
        # Closed last, so that whatever happens on the way out is still heard.
        error_sink = Sink(_STANDARD_ERROR)
        at_exit.callback(error_sink.close)
        at_exit.enter_context(logging_to(error_sink))
        access_sink = None
        if options.access_log is not None:
            access_sink = open_sink(options.access_log)
            at_exit.callback(access_sink.close)
        at_exit.callback(holdings.close)
        opened = holdings.first(generation)
        daemon = Daemon(path, options, holdings, resolver, error_sink)
        with asyncio.Runner(loop_factory=RelayLoop) as runner:
            runner.run(daemon.run(generation, opened, access_sink))
    return 0


class Daemon:
    """The running relay and what may happen to it. Lives in one event loop, once."""

    _running: Running

    def __init__(
        self,
        path: str,
        options: Options,
        holdings: Holdings,
        resolver: Resolver,
        error_sink: Sink,
    ) -> None:
        self._path = path
        self._options = options
        self._holdings = holdings
        self._resolver = resolver
        self._answers = Answers(path, error_sink.write, Notifier(os.environ.get("NOTIFY_SOCKET")))
        self._reload_asked = asyncio.Event()
        self._stop_asked = asyncio.Event()

    async def run(self, generation: Generation, opened: Sequence[Opened], access_sink: Sink | None) -> None:
        """Relay until a signal says stop, then until the last connection ended or patience did."""
        loop = asyncio.get_running_loop()
        running = self._running = Running(generation, self._resolver, self._options.limits(), access_sink)
        captures = self._holdings.captures
        try:
            self._answers.findings(generation.warnings)
            running.listen(opened)
            captures.follow(
                lambda capture: loop.add_reader(capture.monitor, captures.changed, capture, loop),
                lambda capture: loop.remove_reader(capture.monitor),
            )
            self._holdings.slots.follow(loop.add_reader, loop.remove_reader)
            for number in _STOPPING_SIGNALS:
                loop.add_signal_handler(number, self._stop)
            loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
            loop.add_signal_handler(signal.SIGUSR1, running.reopen_log)
            loop.add_signal_handler(signal.SIGUSR2, self._tell_status)
            # What start-up made stays: the collector need not walk it again for each young object.
            gc.collect()
            gc.freeze()
            self._answers.serving(generation, opened, captures.ways())
            async with asyncio.TaskGroup() as tasks:
                reloading = tasks.create_task(self._reload_when_asked())
                await self._stop_asked.wait()
                reloading.cancel()
            running.stop_listening()
            self._answers.stopping(running.snapshot().active, self._options.drain_s)
            running.hasten(self._options.drain_s)
            await running.finish()
        finally:
            running.close()

    async def _reload_when_asked(self) -> None:
        while True:
            await self._reload_asked.wait()
            # Cleared first: a signal that comes while the files are read asks for another round.
            self._reload_asked.clear()
            self._answers.reloading()
            self._running.reopen_log()
            await self._reload()
            self._answers.ready(self._running.generation)

    async def _reload(self) -> None:
        try:
            prepared = await self._prepared()
            self._swap(prepared)
        except Exception as error:
            # A reload must not end the relay, whatever is wrong with it.
            self._answers.not_reloaded(error, self._running.generation)
        else:
            self._answers.reloaded(prepared.generation)

    async def _prepared(self) -> Prepared:
        """The next generation, made beside the relay; raises what went wrong."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits any more
                loop.call_soon_threadsafe(over.set)

        preparing = Preparing(self._path, {one.key for one in self._running.opened}, tell)
        await over.wait()
        return preparing.outcome()

    def _swap(self, prepared: Prepared) -> None:
        """Make another generation the one that runs; on StartError nothing has changed."""
        opened = self._holdings.next(prepared, self._running.opened)
        self._running.replace(prepared.generation, opened)
        self._answers.findings(prepared.generation.warnings)

    def _tell_status(self) -> None:
        self._answers.status(self._running.snapshot())

    def _stop(self) -> None:
        if self._stop_asked.is_set():
            self._answers.hurrying()
            self._running.hasten(0)
        self._stop_asked.set()


def _servers(text: str | None) -> tuple[Endpoint, ...]:
    """The DNS server that `--resolver` names, `ADDR` or `ADDR:PORT`; none: the system's."""
    if text is None:
        return ()
    try:
        try:
            endpoint = Endpoint(parse_address(text), _DNS_PORT)
        except AddressError:
            endpoint = parse_endpoint(text)
    except AddressError as error:
        raise StartError(f"--resolver: {error}") from None
    if isinstance(endpoint.host, str):
        raise StartError(f"--resolver: `{endpoint.host}` is a name; a resolver needs an address")
    return (endpoint,)


def _raise_descriptor_limit() -> None:
    """Use every descriptor we may have: each connection takes two, and more while bytes move fast."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
